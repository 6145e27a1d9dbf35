//! Moments, as callers pass them in: the engine reads no clock.

use std::fmt;

/// A moment in microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// A text that is not an RFC 3339 moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an RFC 3339 time")]
pub struct InvalidTime;

const MICROS_PER_SEC: i64 = 1_000_000;
const SECS_PER_DAY: i64 = 86_400;
/// 0001-01-01 and 10000-01-01 as days since 1970: what four digits of year can say.
const DAYS: std::ops::Range<i64> = -719_162..2_932_897;

impl Timestamp {
    /// The moment so many microseconds after (or before) the epoch, kept within the
    /// years 1 to 9999, which is what RFC 3339 can express.
    pub fn from_micros(micros: i64) -> Self {
        let day = SECS_PER_DAY * MICROS_PER_SEC;
        Self(micros.clamp(DAYS.start * day, DAYS.end * day - 1))
    }

    /// Microseconds since the epoch.
    pub fn as_micros(self) -> i64 {
        self.0
    }

    /// Reads what RFC 3339 writers, restic among them, make of a moment. Digits
    /// beyond microseconds are cut off.
    pub fn parse(text: &str) -> Result<Self, InvalidTime> {
        let (date, rest) = text.split_at_checked(10).ok_or(InvalidTime)?;
        let (clock, rest) = rest.split_at_checked(9).ok_or(InvalidTime)?;
        let (year, month, day) = (number(date, 0..4)?, number(date, 5..7)?, number(date, 8..10)?);
        let (hour, minute, second) =
            (number(clock, 1..3)?, number(clock, 4..6)?, number(clock, 7..9)?);
        let separators = [&date[4..5], &date[7..8], &clock[3..4], &clock[6..7]];
        let in_range = (1..=9999).contains(&year)
            && (1..=12).contains(&month)
            && (1..=days_in_month(year, month)).contains(&day)
            && hour < 24
            && minute < 60
            && second <= 60;
        if separators != ["-", "-", ":", ":"] || !matches!(&clock[..1], "T" | "t") || !in_range {
            return Err(InvalidTime);
        }
        let (fraction, zone) = split_fraction(rest)?;
        let secs =
            days_from_civil(year, month, day) * SECS_PER_DAY + hour * 3600 + minute * 60 + second
                - offset_secs(zone)?;
        Ok(Self::from_micros(secs * MICROS_PER_SEC + fraction))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with microseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.0.div_euclid(MICROS_PER_SEC);
        let (year, month, day) = civil_from_days(secs.div_euclid(SECS_PER_DAY));
        let of_day = secs.rem_euclid(SECS_PER_DAY);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
            of_day / 3600,
            of_day / 60 % 60,
            of_day % 60,
            self.0.rem_euclid(MICROS_PER_SEC)
        )
    }
}

fn number(text: &str, range: std::ops::Range<usize>) -> Result<i64, InvalidTime> {
    let digits = text.get(range).ok_or(InvalidTime)?;
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        digits.parse().map_err(|_| InvalidTime)
    } else {
        Err(InvalidTime)
    }
}

/// Splits `.123456789+02:00` into microseconds and the zone.
fn split_fraction(text: &str) -> Result<(i64, &str), InvalidTime> {
    let Some(fraction) = text.strip_prefix('.') else {
        return Ok((0, text));
    };
    let end = fraction.find(|c: char| !c.is_ascii_digit()).ok_or(InvalidTime)?;
    if end == 0 {
        return Err(InvalidTime);
    }
    let (digits, zone) = fraction.split_at(end);
    let micros = digits.bytes().chain(std::iter::repeat(b'0')).take(6);
    Ok((micros.fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0')), zone))
}

fn offset_secs(zone: &str) -> Result<i64, InvalidTime> {
    if matches!(zone, "Z" | "z") {
        return Ok(0);
    }
    let sign = match zone.get(..1) {
        Some("+") => 1,
        Some("-") => -1,
        Some(_) | None => return Err(InvalidTime),
    };
    let (hours, minutes) = (number(zone, 1..3)?, number(zone, 4..6)?);
    if zone.len() != 6 || zone.get(3..4) != Some(":") || hours > 23 || minutes > 59 {
        return Err(InvalidTime);
    }
    Ok(sign * (hours * 3600 + minutes * 60))
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap(year) => 29,
        2 => 28,
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        _ => 0,
    }
}

/// Days from 1970-01-01 to the first of January of a year of the Gregorian calendar.
fn days_to_year(year: i64) -> i64 {
    let before = year - 1;
    before * 365 + before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400) - 719_162
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let months: i64 = (1..month).map(|m| days_in_month(year, m)).sum();
    days_to_year(year) + months + day - 1
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    // The mean year is 365.2425 days; the guess is off by at most one.
    let mut year = 1970 + (days * 10_000).div_euclid(3_652_425);
    while days < days_to_year(year) {
        year -= 1;
    }
    while days >= days_to_year(year + 1) {
        year += 1;
    }
    let mut rest = days - days_to_year(year);
    let mut month = 1;
    while rest >= days_in_month(year, month) {
        rest -= days_in_month(year, month);
        month += 1;
    }
    (year, month, rest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_rfc_3339() {
        for (micros, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00.000000Z"),
            (1_795_471_871_123_456, "2026-11-23T22:11:11.123456Z"),
            (4_107_542_400_000_000, "2100-03-01T00:00:00.000000Z"),
            (i64::MAX, "9999-12-31T23:59:59.999999Z"),
            (i64::MIN, "0001-01-01T00:00:00.000000Z"),
        ] {
            assert_eq!(Timestamp::from_micros(micros).to_string(), text);
        }
    }

    #[test]
    fn what_restic_writes_is_read() {
        for (text, utc) in [
            ("2026-11-23T22:11:11.123456789+02:00", "2026-11-23T20:11:11.123456Z"),
            ("2026-11-23T22:11:11-01:30", "2026-11-23T23:41:11.000000Z"),
            ("2026-11-23T22:11:11.5Z", "2026-11-23T22:11:11.500000Z"),
        ] {
            assert_eq!(Timestamp::parse(text).unwrap().to_string(), utc);
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "2026-11-23",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-11-23T24:00:00Z",
            "2026-11-23T22:11:11",
            "2026-11-23T22:11:11.Z",
            "2026-11-23T22:11:11+2:00",
            "2026/11/23T22:11:11Z",
            "2026-11-23T22:1ä:11Z",
        ] {
            assert_eq!(Timestamp::parse(text), Err(InvalidTime), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_moment_survives_its_text(micros in proptest::prelude::any::<i64>()) {
            let moment = Timestamp::from_micros(micros);
            proptest::prop_assert_eq!(Timestamp::parse(&moment.to_string()), Ok(moment));
        }
    }
}
