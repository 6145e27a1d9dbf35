//! Points in time as the catalogue stores them and the API prints them.

use std::fmt;
use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

/// Microseconds since 1970-01-01 UTC.
///
/// Prints as the API does: UTC, six fraction digits, no zone (docs/csbs-v1.md; a trailing
/// `Z` breaks Go clients).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// A timestamp from its microseconds since the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the epoch.
    pub fn as_micros(self) -> i64 {
        self.0
    }

    /// This moment plus a span; stops at the end of time instead of wrapping.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        let micros = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(micros))
    }

    /// This long before.
    pub fn minus(self, span: Duration) -> Self {
        let micros = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(micros))
    }

    /// The span since an earlier moment; zero if that moment is later.
    pub fn since(self, earlier: Self) -> Duration {
        let micros = self.0.saturating_sub(earlier.0);
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }

    /// Reads the forms the API's filters take: with or without a fraction, with or
    /// without a trailing `Z` (docs/csbs-v1.md). `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('Z').unwrap_or(text);
        let (_, time_of_day) = text.split_once('T')?;
        if !time_of_day.chars().all(|c| c.is_ascii_digit() || c == ':' || c == '.') {
            return None;
        }
        let civil: DateTime = text.parse().ok()?;
        let instant = TimeZone::UTC.to_timestamp(civil).ok()?;
        Some(Self(instant.as_microsecond()))
    }

    fn civil(self) -> Option<DateTime> {
        let instant = jiff::Timestamp::from_microsecond(self.0).ok()?;
        Some(TimeZone::UTC.to_datetime(instant))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.civil() {
            Some(civil) => write!(
                f,
                "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}",
                civil.year(),
                civil.month(),
                civil.day(),
                civil.hour(),
                civil.minute(),
                civil.second(),
                self.0.rem_euclid(1_000_000)
            ),
            None => f.write_str("9999-12-31T23:59:59.999999"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_prints_six_digits_and_no_zone() {
        let at = Timestamp::from_micros(1_772_875_660_928_000);
        assert_eq!(at.to_string(), "2026-03-07T09:27:40.928000");
    }

    #[test]
    fn every_published_form_reads_back() {
        let at = Timestamp::from_micros(1_772_875_660_000_000);
        for text in ["2026-03-07T09:27:40", "2026-03-07T09:27:40.000000", "2026-03-07T09:27:40Z"] {
            assert_eq!(Timestamp::parse(text), Some(at), "{text}");
        }
        for text in ["", "yesterday", "2026-13-07T09:27:40", "2026-03-07T09:27:40+02:00"] {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }
}
