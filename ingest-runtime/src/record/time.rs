//! Dates and times in ISO 8601's and RFC 3339's forms, to PostgreSQL's days and microseconds since 2000.

use chrono::{Datelike, NaiveDate};

use super::{Code, Refusal};

/// 2000-01-01, PostgreSQL's day zero, in days of the common era.
const EPOCH_DAY: i32 = 730_120;
const SECONDS_PER_DAY: i64 = 86_400;
const MICROSECONDS_PER_SECOND: i64 = 1_000_000;
/// The digits of a second that PostgreSQL stores.
const FRACTION_DIGITS: usize = 6;
/// The greatest offset that PostgreSQL reads, in hours (the greatest in use is 14).
const MAX_OFFSET_HOURS: i64 = 15;

/// Days since 2000-01-01 of `YYYY-MM-DD`.
pub(super) fn date(text: &str) -> Result<i32, Refusal> {
    match split_date(text.as_bytes()) {
        Some((date, [])) => day(date),
        _ => Err(Refusal::new(
            Code::NotADate,
            "is not a date in the form 2024-01-31",
        )),
    }
}

/// Microseconds since 2000-01-01 00:00:00 of a local time.
pub(super) fn timestamp(text: &str) -> Result<i64, Refusal> {
    match moment(text)? {
        (microseconds, None) => Ok(microseconds),
        (_, Some(_)) => Err(Refusal::new(
            Code::OffsetNotAllowed,
            "has an offset from UTC, but the column is a timestamp without time zone",
        )),
    }
}

/// Microseconds since 2000-01-01 00:00:00 UTC of a time with an offset.
pub(super) fn timestamptz(text: &str) -> Result<i64, Refusal> {
    match moment(text)? {
        (microseconds, Some(offset)) => Ok(microseconds - offset * MICROSECONDS_PER_SECOND),
        (_, None) => Err(Refusal::new(
            Code::OffsetMissing,
            "has no offset from UTC: append Z or one such as +02:00",
        )),
    }
}

/// A date and time of day in microseconds since 2000, and the offset in seconds where there is one.
fn moment(text: &str) -> Result<(i64, Option<i64>), Refusal> {
    let malformed = || {
        Refusal::new(
            Code::NotATimestamp,
            "is not a date and time in the form 2024-01-31T23:59:59.123456",
        )
    };
    let (date, rest) = split_date(text.as_bytes()).ok_or_else(malformed)?;
    let [b'T' | b't' | b' ', rest @ ..] = rest else {
        return Err(malformed());
    };
    let (hour, rest) = two_digits(rest).ok_or_else(malformed)?;
    let (minute, rest) = prefixed_two_digits(b':', rest).ok_or_else(malformed)?;
    let (second, rest) = prefixed_two_digits(b':', rest).unwrap_or((0, rest));
    let (fraction, rest) = match rest {
        [b'.', rest @ ..] => fraction(rest, malformed)?,
        _ => (0, rest),
    };
    let offset = offset(rest).ok_or_else(malformed)?;
    let days = i64::from(day(date)?);
    if hour > 23 || minute > 59 || second > 59 {
        return Err(Refusal::new(Code::NoSuchTime, "is a time that does not exist"));
    }
    let seconds = days * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second;
    Ok((seconds * MICROSECONDS_PER_SECOND + fraction, offset))
}

/// Year, month and day at the head of a text, whether or not they exist, and what follows them.
fn split_date(text: &[u8]) -> Option<((i64, i64, i64), &[u8])> {
    let (century, rest) = two_digits(text)?;
    let (year, rest) = two_digits(rest)?;
    let (month, rest) = prefixed_two_digits(b'-', rest)?;
    let (day, rest) = prefixed_two_digits(b'-', rest)?;
    Some(((century * 100 + year, month, day), rest))
}

fn day((year, month, day): (i64, i64, i64)) -> Result<i32, Refusal> {
    let number = |value: i64| u32::try_from(value).unwrap_or_default();
    i32::try_from(year)
        .ok()
        // The year 0 is 1 BC to PostgreSQL, and an error where it is read.
        .filter(|year| *year > 0)
        .and_then(|year| NaiveDate::from_ymd_opt(year, number(month), number(day)))
        .map(|date| date.num_days_from_ce() - EPOCH_DAY)
        .ok_or_else(|| Refusal::new(Code::NoSuchDate, "is a date that does not exist"))
}

/// Microseconds of the digits behind a point.
fn fraction(text: &[u8], malformed: impl Fn() -> Refusal) -> Result<(i64, &[u8]), Refusal> {
    let end = text
        .iter()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() {
        return Err(malformed());
    }
    if digits.iter().skip(FRACTION_DIGITS).any(|digit| *digit != b'0') {
        return Err(Refusal::new(
            Code::TooPrecise,
            "has a fraction of a microsecond, which PostgreSQL would round",
        ));
    }
    let padded = digits.iter().copied().chain(std::iter::repeat(b'0'));
    let value = padded
        .take(FRACTION_DIGITS)
        .fold(0, |value, digit| value * 10 + i64::from(digit - b'0'));
    Ok((value, rest))
}

/// The offset that `text` is, in seconds: nothing, `Z`, `+02`, `+0200` or `+02:00`.
fn offset(text: &[u8]) -> Option<Option<i64>> {
    let (sign, rest) = match text {
        [] => return Some(None),
        [b'Z' | b'z'] => return Some(Some(0)),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let (hours, rest) = two_digits(rest)?;
    let minutes = match rest {
        [] => 0,
        [b':', rest @ ..] | rest => two_digits(rest).filter(|(_, rest)| rest.is_empty())?.0,
    };
    let exists = hours <= MAX_OFFSET_HOURS && minutes < 60;
    exists.then_some(Some(sign * (hours * 3600 + minutes * 60)))
}

fn two_digits(text: &[u8]) -> Option<(i64, &[u8])> {
    match text {
        [tens @ b'0'..=b'9', units @ b'0'..=b'9', rest @ ..] => {
            Some((i64::from(tens - b'0') * 10 + i64::from(units - b'0'), rest))
        }
        _ => None,
    }
}

fn prefixed_two_digits(prefix: u8, text: &[u8]) -> Option<(i64, &[u8])> {
    text.split_first()
        .filter(|(first, _)| **first == prefix)
        .and_then(|(_, rest)| two_digits(rest))
}
