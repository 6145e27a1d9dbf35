//! Reads JSON bodies so that every complaint names the field it is about.
//!
//! The body becomes a tree first, which refuses duplicate keys and deep nesting wherever
//! they are; [`Object`] and [`Field`] then read it by name and know their own path.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use kedge_core::ids::ID_CHARS_MAX;
use kedge_service::error::Error;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// A JSON value. It has no `Debug`: a body may hold a password.
#[derive(PartialEq, Eq)]
pub(crate) enum Value {
    Null,
    Flag(bool),
    /// No request of v1 has a number, so its value is of no interest.
    Number,
    Text(String),
    List(Vec<Value>),
    Object(BTreeMap<String, Value>),
}

/// Reads a whole body.
///
/// # Errors
/// It is no JSON, names a key twice or is nested too deep.
pub(crate) fn parse(bytes: &[u8], depth_max: usize) -> Result<Value, Error> {
    let complaint = RefCell::new(None);
    let mut source = serde_json::Deserializer::from_slice(bytes);
    let root = Node { path: &Path::Root, depth: 0, depth_max, complaint: &complaint };
    let read = root.deserialize(&mut source).and_then(|value| source.end().map(|()| value));
    read.map_err(|error| {
        complaint.take().unwrap_or_else(|| {
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

/// Reads one value and everything in it.
struct Node<'a> {
    path: &'a Path<'a>,
    depth: usize,
    depth_max: usize,
    /// What we complained about: serde carries only its own kind of error.
    complaint: &'a RefCell<Option<Error>>,
}

impl<'a> Node<'a> {
    fn child(&self, path: &'a Path<'a>) -> Self {
        Self { path, depth: self.depth + 1, ..*self }
    }

    fn complain<E: serde::de::Error>(&self, path: &Path<'_>, expected: String) -> E {
        self.complaint.replace(Some(Error::bad(path.to_string(), expected)));
        E::custom("refused")
    }

    fn check_depth<E: serde::de::Error>(&self) -> Result<(), E> {
        if self.depth < self.depth_max {
            return Ok(());
        }
        Err(self.complain(self.path, format!("at most {} levels of nesting", self.depth_max)))
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
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

    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Number)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Number)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Number)
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut source: A) -> Result<Value, A::Error> {
        self.check_depth()?;
        let mut list = Vec::new();
        loop {
            let path = Path::Index(self.path, list.len());
            match source.next_element_seed(self.child(&path))? {
                Some(value) => list.push(value),
                None => return Ok(Value::List(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut source: A) -> Result<Value, A::Error> {
        self.check_depth()?;
        let mut members = BTreeMap::new();
        while let Some(key) = source.next_key::<String>()? {
            match members.entry(key) {
                Entry::Occupied(taken) => {
                    let path = Path::Key(self.path, taken.key());
                    return Err(self.complain(&path, "one value, the key is there twice".into()));
                }
                Entry::Vacant(free) => {
                    let key = free.key().clone();
                    let path = Path::Key(self.path, &key);
                    free.insert(source.next_value_seed(self.child(&path))?);
                }
            }
        }
        Ok(Value::Object(members))
    }
}

/// An object, read member by member. Members nobody asks for are ignored.
pub(crate) struct Object<'a> {
    path: String,
    members: &'a BTreeMap<String, Value>,
}

impl<'a> Object<'a> {
    /// The object that every body is.
    pub(crate) fn root(body: &'a Value) -> Result<Self, Error> {
        match body {
            Value::Object(members) => Ok(Self { path: String::new(), members }),
            Value::Null | Value::Flag(_) | Value::Number | Value::Text(_) | Value::List(_) => {
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

    /// A boolean, or its word as some clients send it (csbs-api 2.7).
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

    fn complaint(bytes: &[u8]) -> String {
        match parse(bytes, 8) {
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
        assert!(parse(nested(8).as_bytes(), 8).is_ok());
        assert_eq!(
            complaint(nested(9).as_bytes()),
            "body[0][0][0][0][0][0][0][0]: expected at most 8 levels of nesting"
        );
        assert!(complaint(nested(100_000).as_bytes()).contains("at most 8 levels"));
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
            8,
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
            let value = Value::Text(text.to_owned());
            Field { path: "id".to_owned(), value: Some(&value) }.word().is_ok()
        };
        assert!(word(&"ü".repeat(255)));
        assert!(word("../etc\n"));
        assert!(!word(&"x".repeat(256)));
        assert!(!word(""));
        assert!(!word("a\0b"));
    }
}
