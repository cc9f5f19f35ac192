//! Durations in the form of the Gateway API (GEP-2257): up to four numbers of at most five digits, each with
//! a unit of `h`, `m`, `s` or `ms`, such as `1h30m` or `500ms`.

use std::{fmt, str::FromStr, time};

/// The pattern of GEP-2257, enforced by the API server.
pub const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// A length of time, in whole milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(time::Duration);

/// Why a text is not a [`Duration`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a duration: write up to four numbers of at most five digits with a unit each (h, m, s, ms), such as 1h30m or 500ms"
)]
pub struct InvalidDuration(String);

impl Duration {
    /// A duration of `milliseconds`.
    #[must_use]
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(time::Duration::from_millis(milliseconds))
    }

    /// The same length of time for the standard library.
    #[must_use]
    pub const fn as_std(self) -> time::Duration {
        self.0
    }
}

impl FromStr for Duration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        let invalid = || InvalidDuration(text.to_owned());
        let (mut rest, mut milliseconds, mut parts) = (text, 0, 0);
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
            let (number, tail) = rest.split_at(digits);
            let unit_length = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_length);
            let factor = UNITS
                .iter()
                .find(|(name, _)| *name == unit)
                .ok_or_else(invalid)?
                .1;
            if number.len() > 5 {
                return Err(invalid());
            }
            milliseconds += number.parse::<u64>().map_err(|_| invalid())? * factor;
            parts += 1;
            rest = tail;
        }
        if (1..=4).contains(&parts) {
            Ok(Self::from_millis(milliseconds))
        } else {
            Err(invalid())
        }
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return formatter.write_str("0s");
        }
        for (unit, factor) in UNITS {
            if rest >= factor {
                write!(formatter, "{}{unit}", rest / factor)?;
                rest %= factor;
            }
        }
        Ok(())
    }
}

crate::schema::as_string!(Duration, description: "A duration such as 10s, 500ms or 1h30m.", pattern: PATTERN, max_length: 28);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_unit_and_writes_it_back() {
        for (text, milliseconds) in [
            ("10s", 10_000),
            ("500ms", 500),
            ("1h30m", 5_400_000),
            ("1m1ms", 60_001),
            ("0s", 0),
        ] {
            let duration: Duration = text.parse().unwrap();
            assert_eq!(duration, Duration::from_millis(milliseconds), "{text}");
            assert_eq!(duration.to_string(), text);
        }
    }

    #[test]
    fn refuses_what_the_pattern_refuses() {
        for text in ["", "10", "s", "1.5s", "-1s", "100000s", "1d", "1s1s1s1s1s", "1 s"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }
}
