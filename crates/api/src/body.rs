//! Reads JSON bodies so that every complaint names the field it is about.
//!
//! The body becomes a tree first, which refuses duplicate keys, deep nesting and too many
//! values wherever they are; [`Object`] and [`Field`] then read it by name and know their
//! own path.
//!
//! Invariant: a tree takes little more memory than the values in it. Strangers send bodies
//! too, and an object of seven bytes must not cost hundreds.

use std::cell::{Cell, RefCell};
use std::fmt;

use kedge_core::ids::ID_CHARS_MAX;
use kedge_service::error::Error;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::config::Limits;

/// A JSON value. It has no `Debug`: a body may hold a password.
#[derive(PartialEq, Eq)]
pub(crate) enum Value {
    Null,
    Flag(bool),
    /// A count, where it is one; no request of v1 itself has a number.
    Number(Option<u64>),
    Text(Box<str>),
    List(Box<[Value]>),
    Object(Members),
}

/// The members of an object in the order of their keys, each key once.
#[derive(PartialEq, Eq)]
pub(crate) struct Members(Box<[(Box<str>, Value)]>);

impl Members {
    /// Sorting finds what is there twice, however many members a stranger sends.
    ///
    /// # Errors
    /// The key that is there twice.
    fn new(mut members: Vec<(Box<str>, Value)>) -> Result<Self, Box<str>> {
        members.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let twice = members.windows(2).position(|pair| pair[0].0 == pair[1].0);
        match twice {
            Some(index) => Err(members.swap_remove(index).0),
            None => Ok(Self(members.into_boxed_slice())),
        }
    }

    fn get(&self, name: &str) -> Option<&Value> {
        let index = self.0.binary_search_by(|(key, _)| (**key).cmp(name)).ok()?;
        self.0.get(index).map(|(_, value)| value)
    }
}

/// Reads a whole body.
///
/// # Errors
/// It is no JSON, names a key twice, is nested too deep or has too many values.
pub(crate) fn parse(bytes: &[u8], limits: &Limits) -> Result<Value, Error> {
    let reading = Reading { limits, values: Cell::new(0), complaint: RefCell::new(None) };
    let mut source = serde_json::Deserializer::from_slice(bytes);
    let root = Node { path: &Path::Root, depth: 0, reading: &reading };
    let read = root.deserialize(&mut source).and_then(|value| source.end().map(|()| value));
    read.map_err(|error| {
        reading.complaint.take().unwrap_or_else(|| {
            Error::bad(
                "body",
                format!("valid JSON (line {}, column {})", error.line(), error.column()),
            )
        })
    })
}

/// Where in the body something stands.
enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("body"),
            Self::Key(Path::Root, key) => f.write_str(key),
            Self::Key(parent, key) => write!(f, "{parent}.{key}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// What the reading of one body has come to.
struct Reading<'a> {
    limits: &'a Limits,
    values: Cell<usize>,
    /// What we complained about: serde carries only its own kind of error.
    complaint: RefCell<Option<Error>>,
}

/// Reads one value and everything in it.
struct Node<'a> {
    path: &'a Path<'a>,
    depth: usize,
    reading: &'a Reading<'a>,
}

impl<'a> Node<'a> {
    fn child(&self, path: &'a Path<'a>) -> Self {
        Self { path, depth: self.depth + 1, ..*self }
    }

    fn complain<E: serde::de::Error>(&self, path: &Path<'_>, expected: String) -> E {
        self.reading.complaint.replace(Some(Error::bad(path.to_string(), expected)));
        E::custom("refused")
    }

    fn check_depth<E: serde::de::Error>(&self) -> Result<(), E> {
        let most = self.reading.limits.json_depth_max;
        if self.depth < most {
            return Ok(());
        }
        Err(self.complain(self.path, format!("at most {most} levels of nesting")))
    }

    fn count<E: serde::de::Error>(&self) -> Result<(), E> {
        let most = self.reading.limits.json_values_max;
        let values = self.reading.values.get() + 1;
        self.reading.values.set(values);
        if values <= most {
            return Ok(());
        }
        Err(self.complain(&Path::Root, format!("at most {most} values")))
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        self.count()?;
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Flag(value))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(u64::try_from(number).ok()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(Some(number)))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Number(None))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.into()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut source: A) -> Result<Value, A::Error> {
        self.check_depth()?;
        let mut list = Vec::new();
        loop {
            let path = Path::Index(self.path, list.len());
            match source.next_element_seed(self.child(&path))? {
                Some(value) => list.push(value),
                None => return Ok(Value::List(list.into())),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut source: A) -> Result<Value, A::Error> {
        self.check_depth()?;
        let mut members = Vec::new();
        while let Some(key) = source.next_key::<Box<str>>()? {
            let path = Path::Key(self.path, &key);
            let value = source.next_value_seed(self.child(&path))?;
            members.push((key, value));
        }
        Members::new(members).map(Value::Object).map_err(|key| {
            let path = Path::Key(self.path, &key);
            self.complain(&path, "one value, the key is there twice".into())
        })
    }
}

/// An object, read member by member. Members nobody asks for are ignored.
pub(crate) struct Object<'a> {
    path: String,
    members: &'a Members,
}

impl<'a> Object<'a> {
    /// The object that every body is.
    pub(crate) fn root(body: &'a Value) -> Result<Self, Error> {
        match body {
            Value::Object(members) => Ok(Self { path: String::new(), members }),
            Value::Null | Value::Flag(_) | Value::Number(_) | Value::Text(_) | Value::List(_) => {
                Err(Error::bad("body", "an object"))
            }
        }
    }

    /// The member of this name, there or not.
    pub(crate) fn field(&self, name: &str) -> Field<'a> {
        let path =
            if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Field { path, value: self.members.get(name) }
    }
}

/// A place where a value may stand.
pub(crate) struct Field<'a> {
    path: String,
    value: Option<&'a Value>,
}

impl<'a> Field<'a> {
    /// A complaint about this place.
    pub(crate) fn bad(&self, expected: impl Into<String>) -> Error {
        Error::bad(self.path.clone(), expected)
    }

    /// The same place if a value other than null stands there: how optional fields are
    /// read, since clients send null for what they leave out.
    pub(crate) fn given(self) -> Option<Self> {
        match self.value {
            None | Some(Value::Null) => None,
            Some(_) => Some(self),
        }
    }

    /// Whether the key is there, with null too.
    pub(crate) fn is_named(&self) -> bool {
        self.value.is_some()
    }

    pub(crate) fn object(&self) -> Result<Object<'a>, Error> {
        match self.value {
            Some(Value::Object(members)) => Ok(Object { path: self.path.clone(), members }),
            _ => Err(self.bad("an object")),
        }
    }

    /// A list, possibly empty.
    pub(crate) fn list(&self) -> Result<Vec<Field<'a>>, Error> {
        match self.value {
            Some(Value::List(values)) => Ok(self.places(values)),
            _ => Err(self.bad("a list")),
        }
    }

    pub(crate) fn non_empty_list(&self) -> Result<Vec<Field<'a>>, Error> {
        match self.value {
            Some(Value::List(values)) if !values.is_empty() => Ok(self.places(values)),
            _ => Err(self.bad("a non-empty list")),
        }
    }

    fn places(&self, values: &'a [Value]) -> Vec<Field<'a>> {
        let place =
            |(index, value)| Field { path: format!("{}[{index}]", self.path), value: Some(value) };
        values.iter().enumerate().map(place).collect()
    }

    /// An id, a type or a name of somebody else's: see [`ID_CHARS_MAX`].
    pub(crate) fn word(&self) -> Result<&'a str, Error> {
        match self.value {
            Some(Value::Text(text))
                if !text.is_empty()
                    && !text.contains('\0')
                    && text.chars().count() <= ID_CHARS_MAX =>
            {
                Ok(text)
            }
            _ => Err(self.bad(format!(
                "a non-empty string of at most {ID_CHARS_MAX} characters other than NUL"
            ))),
        }
    }

    /// A text, possibly empty; who uses it knows its limits.
    pub(crate) fn text(&self) -> Result<&'a str, Error> {
        match self.value {
            Some(Value::Text(text)) if !text.contains('\0') => Ok(text),
            _ => Err(self.bad("a string without NUL")),
        }
    }

    /// A number of things.
    pub(crate) fn count(&self) -> Result<u64, Error> {
        match self.value {
            Some(Value::Number(Some(number))) => Ok(*number),
            _ => Err(self.bad("a whole number, not negative")),
        }
    }

    /// A boolean, or its word as some clients send it (docs/csbs-v1.md).
    pub(crate) fn flag(&self) -> Result<bool, Error> {
        match self.value {
            Some(Value::Flag(flag)) => Ok(*flag),
            Some(Value::Text(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
            Some(Value::Text(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
            _ => Err(self.bad("true or false")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { json_depth_max: 8, ..Limits::default() }
    }

    fn complaint(bytes: &[u8]) -> String {
        match parse(bytes, &limits()) {
            Ok(_) => "none".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_duplicate_key_is_named_wherever_it_is() {
        assert_eq!(
            complaint(br#"{"a": 1, "a": 1}"#),
            "a: expected one value, the key is there twice"
        );
        assert_eq!(
            complaint(br#"{"q": [{}, {"target": {"ignored": {"x": 1, "y": 2, "x": 3}}}]}"#),
            "q[1].target.ignored.x: expected one value, the key is there twice"
        );
        // Two spellings of one key are one key.
        assert_eq!(
            complaint(br#"{"a": 1, "\u0061": 1}"#),
            "a: expected one value, the key is there twice"
        );
    }

    #[test]
    fn nesting_ends_at_the_limit() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(parse(nested(8).as_bytes(), &limits()).is_ok());
        assert_eq!(
            complaint(nested(9).as_bytes()),
            "body[0][0][0][0][0][0][0][0]: expected at most 8 levels of nesting"
        );
        assert!(complaint(nested(100_000).as_bytes()).contains("at most 8 levels"));
    }

    #[test]
    fn values_end_at_the_limit_wherever_they_are() {
        let limits = Limits { json_values_max: 5, ..limits() };
        let read = |body: &str| parse(body.as_bytes(), &limits).map_err(|error| error.to_string());
        for good in ["[0,0,0,0]", r#"{"a":{"b":1},"c":[2]}"#, "[[[[[]]]]]"] {
            assert!(read(good).is_ok(), "{good}");
        }
        for bad in ["[0,0,0,0,0]", r#"{"a":{"b":1},"c":[2,3]}"#, "[{},{},{},{},{}]"] {
            assert_eq!(read(bad).err().unwrap(), "body: expected at most 5 values", "{bad}");
        }
    }

    #[test]
    fn a_body_full_of_tiny_objects_is_refused() {
        let body = format!("[{}0]", "{\"\":0},".repeat((1 << 20) / 7));
        assert_eq!(complaint(body.as_bytes()), "body: expected at most 50000 values");
    }

    /// With the limit of values this bounds a tree: nothing is allocated besides texts and
    /// slices of exactly these.
    #[test]
    fn a_value_is_small() {
        assert!(size_of::<Value>() <= 24);
        assert!(size_of::<(Box<str>, Value)>() <= 40);
    }

    #[test]
    fn every_member_of_a_large_object_is_found_and_the_last_duplicate_too() {
        let count = Limits::default().json_values_max - 2;
        // The keys come in neither order.
        let key = |n: usize| format!("{:05}", n * 7919 % 50_021);
        let members: String = (0..count).map(|n| format!("\"{}\":true,", key(n))).collect();
        let body = parse(format!("{{{members}\"z\":null}}").as_bytes(), &limits()).ok().unwrap();
        let object = Object::root(&body).unwrap();
        assert!((0..count).all(|n| object.field(&key(n)).flag().unwrap()));
        assert!(!object.field("none").is_named());
        let twice = format!("{{{members}\"{}\":null}}", key(0));
        assert_eq!(
            complaint(twice.as_bytes()),
            "00000: expected one value, the key is there twice"
        );
    }

    #[test]
    fn what_is_no_json_is_refused_with_its_place() {
        let broken: [&[u8]; 9] = [
            b"",
            b"{",
            b"{\"a\": }",
            b"{} {}",
            b"nul",
            b"{'a': 1}",
            b"\"\\ud800\"",
            b"\"\xff\"",
            b"[1,]",
        ];
        for body in broken {
            let text = complaint(body);
            assert!(text.starts_with("body: expected valid JSON (line 1"), "{body:?}: {text}");
        }
    }

    #[test]
    fn a_field_knows_its_path_and_what_belongs_there() {
        let body = parse(
            br#"{"a": {"list": [{"id": "x", "off": "False", "on": true, "none": null}], "n": 1}}"#,
            &limits(),
        );
        let body = body.ok().unwrap();
        let a = Object::root(&body).unwrap().field("a").object().unwrap();
        let entry = a.field("list").list().unwrap().remove(0).object().unwrap();
        assert_eq!(entry.field("id").word().unwrap(), "x");
        assert!(!entry.field("off").flag().unwrap());
        assert!(entry.field("on").flag().unwrap());
        assert!(entry.field("none").given().is_none() && entry.field("none").is_named());
        assert!(!entry.field("absent").is_named());
        let text = |error: Option<Error>| error.unwrap().to_string();
        assert_eq!(
            text(entry.field("on").word().err()),
            "a.list[0].on: expected a non-empty string of at most 255 characters other than NUL"
        );
        assert_eq!(text(a.field("n").flag().err()), "a.n: expected true or false");
        assert_eq!(text(a.field("n").object().err()), "a.n: expected an object");
        assert_eq!(text(a.field("n").list().err()), "a.n: expected a list");
    }

    #[test]
    fn a_word_has_1_to_255_characters_and_no_nul() {
        let word = |text: &str| {
            let value = Value::Text(text.into());
            Field { path: "id".to_owned(), value: Some(&value) }.word().is_ok()
        };
        assert!(word(&"ü".repeat(255)));
        assert!(word("../etc\n"));
        assert!(!word(&"x".repeat(256)));
        assert!(!word(""));
        assert!(!word("a\0b"));
    }
}
