//! Multipart uploads that nobody finished: listed and ended by requests of our own, since
//! the client of the store cannot list them.
//!
//! A crash between the start and the end of an upload leaves its parts in the store, paid
//! for and shown by no listing of objects. One is ended here when it began a day before
//! *the store's own* clock says it is now: ours is not asked, and no upload of a pack
//! lasts a day. Ending one that lives after all would only fail that put.

use bytes::Buf as _;
use http::{Method, Request, header};
use jiff::fmt::rfc2822;
use object_store::{
    aws::AwsAuthorizer,
    client::{HttpRequestBody, HttpResponse, HttpService as _},
};
use serde::Deserialize;

use super::{S3Bucket, http::Trouble};
use crate::{backend::BackendError, time::Timestamp};

/// An upload older than this is abandoned.
const ABANDONED_AFTER_MICROS: i64 = 24 * 3600 * 1_000_000;

/// Pages of uploads read at most: 64,000 abandoned ones; the next call goes on.
const PAGES_MAX: usize = 64;

/// A page of 1000 uploads with keys of 200 bytes is a fifth of this.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// An upload somebody began.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Upload {
    key: String,
    upload_id: String,
    initiated: String,
}

/// A page of them.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Page {
    is_truncated: bool,
    next_key_marker: String,
    next_upload_id_marker: String,
    upload: Vec<Upload>,
}

impl Upload {
    /// Whether it began so long before `now` that nobody works on it. One whose beginning
    /// cannot be read is left alone.
    fn is_abandoned(&self, now: Timestamp) -> bool {
        let began = Timestamp::parse(&self.initiated);
        began.is_ok_and(|began| now.as_micros() - began.as_micros() > ABANDONED_AFTER_MICROS)
    }
}

/// Ends the abandoned uploads of objects below `prefix`.
pub(super) async fn end_abandoned(bucket: &S3Bucket, prefix: &str) -> Result<(), BackendError> {
    let (mut key_marker, mut id_marker) = (String::new(), String::new());
    for _ in 0..PAGES_MAX {
        let mut query = vec![("uploads", ""), ("prefix", prefix)];
        if !key_marker.is_empty() {
            query.push(("key-marker", &key_marker));
            query.push(("upload-id-marker", &id_marker));
        }
        let response = match ask(bucket, Method::GET, "", &query).await {
            // A store without such lists, or a right nobody gave us: what is left behind
            // costs space, which is no reason to stop a backup.
            Err(Trouble::Refused { status: 403 | 405 | 501, .. }) => return Ok(()),
            response => response.map_err(|trouble| bucket.meaning(trouble))?,
        };
        let (page, now) = read_page(response).await?;
        for upload in page.upload.iter().filter(|upload| upload.is_abandoned(now)) {
            let query = [("uploadId", upload.upload_id.as_str())];
            match ask(bucket, Method::DELETE, &upload.key, &query).await {
                // Ended meanwhile.
                Ok(_) | Err(Trouble::Refused { status: 404, .. }) => {}
                Err(trouble) => return Err(bucket.meaning(trouble)),
            }
        }
        if !page.is_truncated || page.next_key_marker.is_empty() {
            return Ok(());
        }
        (key_marker, id_marker) = (page.next_key_marker, page.next_upload_id_marker);
    }
    Ok(())
}

/// Whether a retention rule of the store holds the object: an object lock or legal hold
/// stands in the headers of its description, for those who may see them.
pub(super) async fn is_retained(bucket: &S3Bucket, key: &str) -> bool {
    let Ok(response) = ask(bucket, Method::HEAD, key, &[]).await else { return false };
    let told = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    told("x-amz-object-lock-mode").is_some()
        || told("x-amz-object-lock-legal-hold").is_some_and(|hold| hold == "ON")
}

async fn read_page(response: HttpResponse) -> Result<(Page, Timestamp), BackendError> {
    let malformed = |what: &str| BackendError::Io {
        retryable: true,
        text: format!("the list of uploads: {what}"),
    };
    let date = response.headers().get(header::DATE).and_then(|date| date.to_str().ok());
    let now = date.and_then(|date| rfc2822::DateTimeParser::new().parse_timestamp(date).ok());
    let now = now.ok_or_else(|| malformed("no date"))?;
    let mut bytes = Vec::new();
    let mut pieces = response.into_body().bytes_stream();
    while let Some(piece) = futures::StreamExt::next(&mut pieces).await {
        let piece = piece.map_err(|error| malformed(&error.to_string()))?;
        bytes.extend_from_slice(&piece);
        if bytes.len() > PAGE_BYTES_MAX {
            return Err(malformed("too large"));
        }
    }
    let page = quick_xml::de::from_reader(bytes.reader())
        .map_err(|error| malformed(&error.to_string()))?;
    Ok((page, Timestamp::from_micros(now.as_microsecond())))
}

/// One signed request for a key of the bucket, or for the bucket itself.
async fn ask(
    bucket: &S3Bucket,
    method: Method,
    key: &str,
    query: &[(&str, &str)],
) -> Result<HttpResponse, Trouble> {
    let broken = |error: &dyn std::fmt::Display| Trouble::Broken(error.to_string());
    let mut uri = format!("{}/{}", bucket.url, encoded(key, Slash::Kept));
    for (index, (name, value)) in query.iter().enumerate() {
        let joint = if index == 0 { '?' } else { '&' };
        uri.push_str(&format!("{joint}{name}={}", encoded(value, Slash::Encoded)));
    }
    let request = Request::builder().method(method).uri(uri).body(HttpRequestBody::empty());
    let mut request = request.map_err(|error| broken(&error))?;
    let credential = bucket.provider.current().map_err(|error| broken(&error))?;
    AwsAuthorizer::new(&credential, "s3", &bucket.region)
        .try_authorize(&mut request, None)
        .map_err(|error| broken(&error))?;
    let answered = bucket.wire.call(request).await;
    answered.map_err(|error| Trouble::beneath(&error).unwrap_or_else(|| broken(&error)))
}

/// What becomes of a slash.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slash {
    Kept,
    Encoded,
}

/// Percent-encoding as signatures want it: everything but letters, digits and `-._~`.
fn encoded(text: &str, slash: Slash) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let is_plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if is_plain || (byte == b'/' && slash == Slash::Kept) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_began_a_day_ago_is_abandoned() {
        let now = Timestamp::parse("2026-11-25T12:00:00Z").unwrap();
        for (initiated, expected) in [
            ("2026-11-24T11:59:59.000Z", true),
            ("2026-11-24T12:00:00.000Z", false),
            ("2026-11-25T12:00:01Z", false),
            ("yesterday", false),
        ] {
            let upload = Upload {
                key: "k".to_owned(),
                upload_id: "u".to_owned(),
                initiated: initiated.to_owned(),
            };
            assert_eq!(upload.is_abandoned(now), expected, "{initiated}");
        }
    }

    #[test]
    fn a_page_of_uploads_is_read_and_an_empty_one_too() {
        let text = "<?xml version=\"1.0\"?><ListMultipartUploadsResult \
            xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Bucket>b</Bucket>\
            <IsTruncated>true</IsTruncated><NextKeyMarker>a/b</NextKeyMarker>\
            <NextUploadIdMarker>2</NextUploadIdMarker>\
            <Upload><Key>a/a</Key><UploadId>1</UploadId><Initiated>2026-11-24T11:59:59.000Z\
            </Initiated></Upload>\
            <Upload><Key>a/b</Key><UploadId>2</UploadId><Initiated>now</Initiated></Upload>\
            </ListMultipartUploadsResult>";
        let page: Page = quick_xml::de::from_str(text).unwrap();
        assert!(page.is_truncated);
        assert_eq!(page.next_key_marker, "a/b");
        assert_eq!(page.upload.len(), 2);
        let empty: Page = quick_xml::de::from_str("<R><Bucket>b</Bucket></R>").unwrap();
        assert!(!empty.is_truncated && empty.upload.is_empty());
    }

    #[test]
    fn keys_are_encoded_as_signatures_want_them() {
        assert_eq!(encoded("a/b c~+ü", Slash::Kept), "a/b%20c~%2B%C3%BC");
        assert_eq!(encoded("a/b", Slash::Encoded), "a%2Fb");
    }
}
