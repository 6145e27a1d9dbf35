//! One call as a handler sees it: its path, query and headers; and, once the caller was
//! let in, its body.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::{FromRequestParts, MatchedPath};
use http::header::{CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use kedge_core::code::Code;
use kedge_core::ids::ID_CHARS_MAX;
use kedge_service::context::{Context, Right};
use kedge_service::error::Error;
use kedge_wire::PROVIDER_ID;
use zeroize::Zeroizing;

use crate::body::{self, Value};
use crate::config::{Limits, PublicUrl};
use crate::error::ApiError;
use crate::query::{Plus, Query, decode};
use crate::routes::Api;

/// Most bytes of a login: sixteen times the longest password.
const LOGIN_BYTES_MAX: usize = 64 << 10;

const AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");
pub(crate) const SUBJECT_TOKEN: HeaderName = HeaderName::from_static("x-subject-token");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// A request but for its body. It has no `Debug`: it holds the caller's token.
pub(crate) struct Call {
    route: String,
    uri: Uri,
    headers: HeaderMap,
    token: Option<Zeroizing<String>>,
    subject: Option<Zeroizing<String>>,
}

impl FromRequestParts<Api> for Call {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, Infallible> {
        let route = parts.extensions.get::<MatchedPath>();
        Ok(Self {
            route: route.map(|route| route.as_str().to_owned()).unwrap_or_default(),
            token: take_secret(&mut parts.headers, &AUTH_TOKEN),
            subject: take_secret(&mut parts.headers, &SUBJECT_TOKEN),
            uri: parts.uri.clone(),
            headers: parts.headers.clone(),
        })
    }
}

/// Takes a secret out of the headers, so that it is in one place only. Sent twice it is
/// nobody's.
fn take_secret(headers: &mut HeaderMap, name: &HeaderName) -> Option<Zeroizing<String>> {
    let sent_once = headers.get_all(name).iter().count() == 1;
    let value = headers.remove(name).filter(|_| sent_once)?;
    value.to_str().ok().map(|text| Zeroizing::new(text.to_owned()))
}

impl Call {
    /// Lets the caller into the project of the path.
    pub(crate) async fn enter(&self, api: &Api, right: Right) -> Result<Context, ApiError> {
        let project = self.param("project_id")?;
        let token = self.token.as_ref().map(|token| token.as_str());
        Ok(api.app.authorise(token, &project, right).await?)
    }

    /// As [`Call::enter`], below the one provider there is.
    pub(crate) async fn enter_provider(
        &self,
        api: &Api,
        right: Right,
    ) -> Result<Context, ApiError> {
        let context = self.enter(api, right).await?;
        if self.param("provider_id")? != PROVIDER_ID {
            return Err(ApiError::new(
                Code::BadParameter,
                format!("provider invalid: provider_id: expected {PROVIDER_ID}"),
            ));
        }
        Ok(context)
    }

    /// The token, for calls that know no project.
    pub(crate) fn token(&self) -> Result<&str, ApiError> {
        match &self.token {
            Some(token) => Ok(token.as_str()),
            None => Err(Error::Unauthenticated.into()),
        }
    }

    /// The token that is asked about.
    pub(crate) fn subject(&self) -> Result<&str, ApiError> {
        match &self.subject {
            Some(token) => Ok(token.as_str()),
            None => Err(ApiError::bad("X-Subject-Token", "one token")),
        }
    }

    /// A parameter of the path.
    pub(crate) fn param(&self, name: &'static str) -> Result<String, ApiError> {
        let value = find_param(&self.route, self.uri.path(), name);
        let value = value.and_then(|raw| decode(raw, Plus::Literal));
        let is_fit = |text: &String| {
            !text.is_empty()
                && text.chars().count() <= ID_CHARS_MAX
                && !text.contains(char::is_control)
        };
        value.filter(is_fit).ok_or_else(|| {
            ApiError::bad(
                name,
                &format!("1 to {ID_CHARS_MAX} characters, none of them a control character"),
            )
        })
    }

    pub(crate) fn query(&self) -> Result<Query, ApiError> {
        Ok(Query::parse(self.uri.query())?)
    }

    /// This call's own URL with another query.
    pub(crate) fn link(&self, api: &Api, query: &str) -> Result<String, ApiError> {
        Ok(format!("{}{}?{query}", self.base(api)?, self.uri.path()))
    }

    /// What absolute URLs begin with.
    pub(crate) fn base(&self, api: &Api) -> Result<String, ApiError> {
        base(&api.config.public_url, &self.headers)
    }

    /// What the JSON body asks for. Read last: who is not let in sends nothing that we look
    /// at. The body's tree is gone when this returns, so that no call keeps it while it
    /// waits for the service.
    pub(crate) async fn read<T>(
        &self,
        api: &Api,
        body: Body,
        convert: impl FnOnce(&Value) -> Result<T, Error>,
    ) -> Result<T, ApiError> {
        self.read_within(&api.config.limits, body, convert).await
    }

    /// As [`Call::read`], for the one body that strangers send: a login is small.
    pub(crate) async fn read_login<T>(
        &self,
        api: &Api,
        body: Body,
        convert: impl FnOnce(&Value) -> Result<T, Error>,
    ) -> Result<T, ApiError> {
        let limits = &api.config.limits;
        let body_bytes_max = limits.body_bytes_max.min(LOGIN_BYTES_MAX);
        let limits = Limits { body_bytes_max, ..limits.clone() };
        self.read_within(&limits, body, convert).await
    }

    async fn read_within<T>(
        &self,
        limits: &Limits,
        body: Body,
        convert: impl FnOnce(&Value) -> Result<T, Error>,
    ) -> Result<T, ApiError> {
        if !is_json(&self.headers) {
            return Err(ApiError::new(Code::MediaType, "Content-Type: expected application/json"));
        }
        let most = limits.body_time();
        let Ok(bytes) = tokio::time::timeout(most, collect(body, limits.body_bytes_max)).await
        else {
            let text = format!("body: expected within {} seconds", most.as_secs_f64());
            return Err(ApiError::new(Code::Timeout, text));
        };
        let tree = body::parse(&bytes?, limits)?;
        Ok(convert(&tree)?)
    }
}

/// The bytes of a body in one piece: pieces, which may be as small as their sender likes,
/// cost more than their bytes.
async fn collect(body: Body, bytes_max: usize) -> Result<Vec<u8>, ApiError> {
    let mut body = Limited::new(body, bytes_max);
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
            Err(error) if error.is::<LengthLimitError>() => {
                let text = format!("body: expected at most {bytes_max} bytes");
                return Err(ApiError::new(Code::TooLarge, text));
            }
            Err(_) => return Err(ApiError::bad("body", "as many bytes as announced")),
        }
    }
    Ok(bytes)
}

/// Clients that send JSON without saying so are believed; some do.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else { return true };
    let Ok(text) = value.to_str() else { return false };
    let essence = text.split(';').next().unwrap_or_default().trim();
    essence.is_empty() || essence.eq_ignore_ascii_case("application/json")
}

/// The part of a path where its route has this parameter.
fn find_param<'a>(route: &str, path: &'a str, name: &str) -> Option<&'a str> {
    let named =
        |part: &str| part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) == Some(name);
    route.split('/').zip(path.split('/')).find(|(part, _)| named(part)).map(|(_, value)| value)
}

fn base(public_url: &PublicUrl, headers: &HeaderMap) -> Result<String, ApiError> {
    let header = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let forwarded = match public_url {
        PublicUrl::Fixed(url) => return Ok(url.clone()),
        PublicUrl::FromProxy => header(&FORWARDED_HOST),
        PublicUrl::FromHost => None,
    };
    let Some(host) = forwarded else {
        let host = header(&HOST).filter(|host| is_host(host));
        let host =
            host.ok_or_else(|| ApiError::bad("Host", "a host name, with or without a port"))?;
        return Ok(format!("http://{host}"));
    };
    let scheme = match header(&FORWARDED_PROTO) {
        None | Some("http") => "http",
        Some("https") => "https",
        Some(_) => return Err(ApiError::bad("X-Forwarded-Proto", "http or https")),
    };
    if !is_host(host) {
        return Err(ApiError::bad("X-Forwarded-Host", "a host name, with or without a port"));
    }
    Ok(format!("{scheme}://{host}"))
}

/// Letters, digits and what addresses have, so that a link holds nothing but an address.
fn is_host(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= ID_CHARS_MAX
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._:[]".contains(c))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let entry = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(entry).collect()
    }

    #[test]
    fn links_begin_where_the_operator_says() {
        let forwarded = headers(&[
            ("host", "10.0.0.1:8787"),
            ("x-forwarded-host", "backup.example.org"),
            ("x-forwarded-proto", "https"),
        ]);
        let plain = headers(&[("host", "[::1]:8787")]);
        let base = |url: &PublicUrl, headers: &HeaderMap| base(url, headers).ok();
        let fixed = PublicUrl::Fixed("https://fixed".to_owned());
        assert_eq!(base(&fixed, &forwarded).unwrap(), "https://fixed");
        assert_eq!(base(&PublicUrl::FromProxy, &forwarded).unwrap(), "https://backup.example.org");
        assert_eq!(base(&PublicUrl::FromProxy, &plain).unwrap(), "http://[::1]:8787");
        assert_eq!(base(&PublicUrl::FromHost, &forwarded).unwrap(), "http://10.0.0.1:8787");
    }

    #[test]
    fn a_host_that_is_none_makes_no_link() {
        for host in ["", "a/b", "a b", "user@host", "a\"b", "a?b"] {
            let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_str(host).unwrap())]);
            assert!(base(&PublicUrl::FromHost, &headers).is_err(), "{host}");
        }
        assert!(base(&PublicUrl::FromHost, &HeaderMap::new()).is_err());
        let odd = headers(&[("x-forwarded-host", "a"), ("x-forwarded-proto", "javascript")]);
        assert!(base(&PublicUrl::FromProxy, &odd).is_err());
    }

    #[test]
    fn a_token_is_taken_out_and_sent_twice_is_none() {
        let mut once = headers(&[("x-auth-token", "secret")]);
        assert_eq!(take_secret(&mut once, &AUTH_TOKEN).unwrap().as_str(), "secret");
        assert!(once.is_empty());
        let mut twice = headers(&[("x-auth-token", "a"), ("x-auth-token", "b")]);
        assert!(take_secret(&mut twice, &AUTH_TOKEN).is_none());
        assert!(twice.is_empty());
    }

    #[test]
    fn only_json_is_a_body() {
        for good in ["application/json", "Application/JSON; charset=utf-8", ""] {
            let sent = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(good))]);
            assert!(is_json(&sent), "{good}");
        }
        for bad in ["text/plain", "application/jsonx", "application/x-www-form-urlencoded"] {
            let sent = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(bad))]);
            assert!(!is_json(&sent), "{bad}");
        }
        assert!(is_json(&HeaderMap::new()));
    }

    #[test]
    fn a_path_parameter_is_found_by_its_name() {
        let route = "/v1/{project_id}/restores/{restore_id}";
        assert_eq!(find_param(route, "/v1/p/restores/r%2F", "restore_id"), Some("r%2F"));
        assert_eq!(find_param(route, "/v1/p/restores/r", "project_id"), Some("p"));
        assert_eq!(find_param(route, "/v1/p/restores/r", "other"), None);
    }
}
