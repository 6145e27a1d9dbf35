//! Reads query strings strictly: what is not well-formed is refused with its name rather
//! than guessed at.

use kedge_core::ids::{CheckpointId, ID_CHARS_MAX, ItemId, RestoreId, ServerId};
use kedge_core::status::ItemStatus;
use kedge_core::time::Timestamp;
use kedge_service::error::Error;
use kedge_service::items::{Direction, ItemFilter, ItemQuery, PageRequest, Scope, SortKey};

/// Entries of a page unless asked for fewer; also the most (docs/csbs-v1.md).
pub(crate) const LIMIT_MAX: u32 = 1000;

/// A resource type that nothing has.
const NO_TYPE: &str = "none";

const SORT_CHARS_MAX: usize = 255;

/// The parameters in their order, decoded.
#[derive(Debug, Default)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

/// What a plus sign stands for: a blank in queries, itself in paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plus {
    Blank,
    Literal,
}

impl Query {
    pub(crate) fn parse(raw: Option<&str>) -> Result<Self, Error> {
        let parts = raw.unwrap_or_default().split('&').filter(|part| !part.is_empty());
        let pairs = parts.map(parse_pair).collect::<Result<_, _>>()?;
        Ok(Self { pairs })
    }

    /// The value of a parameter that may be there once; empty means absent, as clients
    /// send it (docs/csbs-v1.md).
    pub(crate) fn one(&self, key: &str) -> Result<Option<&str>, Error> {
        let mut values = self.all(key);
        let first = values.next();
        if values.next().is_some() {
            return Err(Error::bad(key, "one value, the parameter is there twice"));
        }
        Ok(first.filter(|value| !value.is_empty()))
    }

    /// Every value of a parameter that may be there several times.
    pub(crate) fn all<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        let key = key.to_owned();
        self.pairs.iter().filter(move |pair| pair.0 == key).map(|pair| pair.1.as_str())
    }

    fn word(&self, key: &str) -> Result<Option<&str>, Error> {
        let Some(value) = self.one(key)? else { return Ok(None) };
        if value.chars().count() > ID_CHARS_MAX {
            return Err(Error::bad(key, format!("at most {ID_CHARS_MAX} characters")));
        }
        Ok(Some(value))
    }

    fn text(&self, key: &str) -> Result<Option<String>, Error> {
        Ok(self.word(key)?.map(str::to_owned))
    }

    fn flag(&self, key: &str) -> Result<bool, Error> {
        match self.one(key)? {
            None => Ok(false),
            Some(value) if value.eq_ignore_ascii_case("true") || value == "1" => Ok(true),
            Some(value) if value.eq_ignore_ascii_case("false") || value == "0" => Ok(false),
            Some(_) => Err(Error::bad(key, "true or false")),
        }
    }

    /// Whether an answer is to come with its reasons.
    pub(crate) fn explain(&self) -> Result<bool, Error> {
        self.flag("explain")
    }

    /// Whether an answer is to be kept as a signed record.
    pub(crate) fn receipt(&self) -> Result<bool, Error> {
        self.flag("receipt")
    }

    /// The number of a record after which to go on.
    pub(crate) fn sequence(&self) -> Result<u64, Error> {
        Ok(self.number("after")?.unwrap_or(0))
    }

    /// A count. One too large for us is as good as the largest.
    fn number(&self, key: &str) -> Result<Option<u64>, Error> {
        let Some(value) = self.one(key)? else { return Ok(None) };
        if !value.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(Error::bad(key, "a decimal number without a sign"));
        }
        Ok(Some(value.parse().unwrap_or(u64::MAX)))
    }

    pub(crate) fn limit(&self) -> Result<u32, Error> {
        match self.number("limit")? {
            None => Ok(LIMIT_MAX),
            Some(0) => Err(Error::bad("limit", "a positive number")),
            Some(limit) => Ok(u32::try_from(limit).unwrap_or(LIMIT_MAX).min(LIMIT_MAX)),
        }
    }

    pub(crate) fn restore_marker(&self) -> Result<Option<RestoreId>, Error> {
        Ok(self.word("marker")?.map(RestoreId::asked))
    }

    fn time(&self, key: &str) -> Result<Option<Timestamp>, Error> {
        let Some(value) = self.one(key)? else { return Ok(None) };
        match Timestamp::parse(value) {
            Some(at) => Ok(Some(at)),
            None => Err(Error::bad(key, "a time like 2026-03-07T09:27:40.928000")),
        }
    }

    fn status(&self) -> Result<Option<ItemStatus>, Error> {
        let Some(value) = self.one("status")? else { return Ok(None) };
        match value.parse() {
            Ok(status) => Ok(Some(status)),
            Err(_) => {
                let words = ItemStatus::ALL.map(ItemStatus::as_str).join(", ");
                Err(Error::bad("status", format!("one of {words}")))
            }
        }
    }

    fn sort(&self) -> Result<Vec<(SortKey, Direction)>, Error> {
        let Some(value) = self.one("sort")? else { return Ok(Vec::new()) };
        if value.chars().count() > SORT_CHARS_MAX {
            return Err(Error::bad("sort", format!("at most {SORT_CHARS_MAX} characters")));
        }
        let order = value.split(',').map(sort_entry).collect::<Option<_>>();
        order.ok_or_else(|| {
            Error::bad(
                "sort",
                "key[:asc|:desc], separated by commas, of created_at, updated_at, name, \
                 status, protected_at, id",
            )
        })
    }

    /// Types, of which any may match. No backup lies on dedicated storage, so asking for
    /// those (`dec`) is asking for a type there is none of.
    fn types(&self) -> Result<Vec<String>, Error> {
        if self.flag("dec")? {
            return Ok(vec![NO_TYPE.to_owned()]);
        }
        let words = self.all("resource_type").filter(|word| !word.is_empty());
        Ok(words.map(str::to_owned).collect())
    }

    /// Filters, and whose backups; what both the list and the count read.
    fn filter(&self) -> Result<(ItemFilter, Scope), Error> {
        let filter = ItemFilter {
            project: None,
            status: self.status()?,
            name_contains: self.text("name")?,
            zone: self.text("az")?,
            resource_id: self.word("resource_id")?.map(ServerId::asked),
            resource_name_contains: self.text("resource_name")?,
            resource_types: self.types()?,
            created_from: self.time("start_time")?,
            created_to: self.time("end_time")?,
            image_type: self.text("image_type")?,
            policy_id: self.text("policy_id")?,
            checkpoint_id: self.word("checkpoint_id")?.map(CheckpointId::asked),
            ip: self.text("ip")?,
        };
        let scope = if self.flag("all_tenants")? { Scope::AllTenants } else { Scope::Project };
        Ok((filter, scope))
    }

    pub(crate) fn items(&self) -> Result<ItemQuery, Error> {
        let (filter, scope) = self.filter()?;
        let page = PageRequest {
            limit: self.limit()?,
            offset: self.number("offset")?.unwrap_or(0),
            marker: self.word("marker")?.map(ItemId::asked),
            sort: self.sort()?,
        };
        Ok(ItemQuery { filter, page, scope })
    }

    /// As [`Query::items`]; a count has no pages, so it reads nothing about them.
    pub(crate) fn count(&self) -> Result<ItemQuery, Error> {
        let (filter, scope) = self.filter()?;
        let page = PageRequest { limit: LIMIT_MAX, offset: 0, marker: None, sort: Vec::new() };
        Ok(ItemQuery { filter, page, scope })
    }

    /// Which backups a deletion names: `None` for all of the record. An empty name is
    /// refused, for it must not widen a deletion to everything.
    pub(crate) fn checkpoint_items(&self) -> Result<Option<Vec<ItemId>>, Error> {
        let words: Vec<_> = self
            .all("checkpoint_items")
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .collect();
        let is_id = |word: &&str| !word.is_empty() && word.chars().count() <= ID_CHARS_MAX;
        if !words.iter().all(is_id) {
            return Err(Error::bad("checkpoint_items", "ids of backups, separated by commas"));
        }
        let ids: Vec<_> = words.into_iter().map(ItemId::asked).collect();
        Ok((!ids.is_empty()).then_some(ids))
    }

    /// The query of the page after the entry `last`. Without the offset, which would be
    /// counted once more from the marker.
    pub(crate) fn after(&self, last: &str) -> String {
        let kept = self.pairs.iter().filter(|pair| pair.0 != "marker" && pair.0 != "offset");
        let mut query: String =
            kept.map(|(key, value)| format!("{}={}&", encode(key), encode(value))).collect();
        query.push_str("marker=");
        query.push_str(&encode(last));
        query
    }
}

fn parse_pair(part: &str) -> Result<(String, String), Error> {
    let (key, value) = part.split_once('=').unwrap_or((part, ""));
    let readable = |raw: &str| decode(raw, Plus::Blank).filter(|text| !text.contains('\0'));
    let Some(key) = readable(key) else {
        return Err(Error::bad("query", "names in percent-encoded UTF-8 without NUL"));
    };
    match readable(value) {
        Some(value) => Ok((key, value)),
        None => Err(Error::bad(key, "a value in percent-encoded UTF-8 without NUL")),
    }
}

/// Undoes percent-encoding. `None` for a broken escape or what is no UTF-8.
pub(crate) fn decode(raw: &str, plus: Plus) -> Option<String> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => hex_digit(rest.next()?)? << 4 | hex_digit(rest.next()?)?,
            b'+' if plus == Plus::Blank => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

fn encode(text: &str) -> String {
    let encoded = text.bytes().map(|byte| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    });
    encoded.collect()
}

fn sort_entry(entry: &str) -> Option<(SortKey, Direction)> {
    let (key, direction) = match entry.split_once(':') {
        Some((key, word)) => (key, Direction::from_word(word)?),
        None => (entry, Direction::Desc),
    };
    Some((SortKey::from_word(key)?, direction))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(raw: &str) -> Result<ItemQuery, String> {
        Query::parse(Some(raw)).and_then(|query| query.items()).map_err(|error| error.to_string())
    }

    fn complaint(raw: &str) -> String {
        items(raw).err().unwrap_or_else(|| "none".to_owned())
    }

    #[test]
    fn every_filter_is_read() {
        let query = items(
            "status=available&name=na%20me&az=az-1&resource_id=S&resource_name=r+n\
             &resource_type=OS::Nova::Server&resource_type=x&start_time=2026-03-07T09:27:40\
             &end_time=2026-03-07T09:27:41.5Z&image_type=backup&policy_id=p&checkpoint_id=c\
             &ip=10.0.0.1&all_tenants=True&dec=false&unknown=1&limit=7&offset=3&marker=m\
             &sort=name%3Aasc,id",
        )
        .unwrap();
        let filter = query.filter;
        assert_eq!(filter.status, Some(ItemStatus::Available));
        assert_eq!(filter.name_contains.as_deref(), Some("na me"));
        assert_eq!(filter.zone.as_deref(), Some("az-1"));
        assert_eq!(filter.resource_id, Some(ServerId::asked("S")));
        assert_eq!(filter.resource_name_contains.as_deref(), Some("r n"));
        assert_eq!(filter.resource_types, ["OS::Nova::Server", "x"]);
        assert_eq!(filter.created_from, Timestamp::parse("2026-03-07T09:27:40"));
        assert_eq!(filter.created_to, Timestamp::parse("2026-03-07T09:27:41.5"));
        assert_eq!(filter.image_type.as_deref(), Some("backup"));
        assert_eq!(filter.policy_id.as_deref(), Some("p"));
        assert_eq!(filter.checkpoint_id, Some(CheckpointId::asked("c")));
        assert_eq!(filter.ip.as_deref(), Some("10.0.0.1"));
        assert_eq!(query.scope, Scope::AllTenants);
        assert_eq!((query.page.limit, query.page.offset), (7, 3));
        assert_eq!(query.page.marker, Some(ItemId::asked("m")));
        assert_eq!(
            query.page.sort,
            [(SortKey::Name, Direction::Asc), (SortKey::Id, Direction::Desc)]
        );
    }

    #[test]
    fn nothing_lies_on_dedicated_storage() {
        let query = items("dec=true&resource_type=OS::Nova::Server").unwrap();
        assert_eq!(query.filter.resource_types, [NO_TYPE]);
    }

    #[test]
    fn an_empty_value_is_no_filter() {
        let query =
            items("status=&name=&limit=&offset=&marker=&sort=&start_time&resource_type=").unwrap();
        assert_eq!(query.filter.status, None);
        assert_eq!(query.filter.name_contains, None);
        assert!(query.filter.resource_types.is_empty());
        assert_eq!((query.page.limit, query.page.offset), (LIMIT_MAX, 0));
        assert_eq!(query.page.marker, None);
        assert!(query.page.sort.is_empty());
    }

    #[test]
    fn a_limit_is_positive_and_at_most_a_page() {
        for raw in ["limit=0", "limit=-3", "limit=x", "limit=1.5", "limit=%2B1", "limit=00"] {
            assert!(complaint(raw).starts_with("limit: expected"), "{raw}");
        }
        for raw in ["limit=1001", "limit=2147483648", "limit=99999999999999999999"] {
            assert_eq!(items(raw).unwrap().page.limit, LIMIT_MAX, "{raw}");
        }
        assert!(complaint("offset=-1").starts_with("offset: expected"));
        assert_eq!(items("offset=0").unwrap().page.offset, 0);
    }

    #[test]
    fn what_is_malformed_is_refused_by_name() {
        let long = format!("name={}", "x".repeat(256));
        let rows = [
            ("name=%ff", "name: expected a value in percent-encoded UTF-8 without NUL"),
            ("ignored=%zz", "ignored: expected a value in percent-encoded UTF-8 without NUL"),
            ("name=%4", "name: expected a value in percent-encoded UTF-8 without NUL"),
            ("name=a%00b", "name: expected a value in percent-encoded UTF-8 without NUL"),
            ("%ff=1", "query: expected names in percent-encoded UTF-8 without NUL"),
            ("name=a&name=a", "name: expected one value, the parameter is there twice"),
            ("all_tenants=maybe", "all_tenants: expected true or false"),
            ("start_time=soon", "start_time: expected a time like 2026-03-07T09:27:40.928000"),
            (&long, "name: expected at most 255 characters"),
        ];
        for (raw, text) in rows {
            assert_eq!(complaint(raw), text, "{raw}");
        }
        assert!(complaint("status=gone").starts_with("status: expected one of waiting_protect, "));
        for raw in ["sort=size", "sort=name:up", "sort=name,,id", "sort=name:asc:desc"] {
            assert!(complaint(raw).starts_with("sort: expected key"), "{raw}");
        }
        assert!(complaint(&format!("sort={}", "id,".repeat(100))).contains("at most 255"));
    }

    #[test]
    fn a_count_reads_filters_and_no_pages() {
        let query = Query::parse(Some("limit=x&offset=-1&sort=size&status=error")).unwrap();
        assert_eq!(query.count().unwrap().filter.status, Some(ItemStatus::Error));
        assert!(Query::parse(Some("status=gone")).unwrap().count().is_err());
    }

    #[test]
    fn a_deletion_takes_repeats_and_commas_and_nothing_empty() {
        let named = |raw: &str| {
            Query::parse(Some(raw)).unwrap().checkpoint_items().map_err(|error| error.to_string())
        };
        assert_eq!(named(""), Ok(None));
        let three = ["a", "b", "c"].map(ItemId::asked).to_vec();
        assert_eq!(named("checkpoint_items=a,b&checkpoint_items=c"), Ok(Some(three)));
        for raw in ["checkpoint_items=", "checkpoint_items=a,,b", "checkpoint_items=%20"] {
            assert!(named(raw).is_err(), "{raw}");
        }
    }

    #[test]
    fn the_next_page_keeps_every_filter_and_drops_the_offset() {
        let raw = "name=a%26b&limit=2&marker=old&offset=5&sort=name:asc&x=1&x=2";
        let query = Query::parse(Some(raw)).unwrap();
        let next = query.after("new");
        assert_eq!(next, "name=a%26b&limit=2&sort=name%3Aasc&x=1&x=2&marker=new");
        let again = Query::parse(Some(&next)).unwrap();
        assert_eq!(again.one("name").unwrap(), Some("a&b"));
    }
}
