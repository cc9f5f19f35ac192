//! `numeric(p,s)`: decimal text to PostgreSQL's digits of base 10,000, without a rounding anywhere.
//!
//! The binary format: count of digits, weight of the first, sign, digits after the point to show (`i16` each),
//! then the digits, each an `i16`, without zeros at either end.

use super::{Code, Refusal};

/// Decimal digits in one digit of base 10,000.
const GROUP: i64 = 4;
const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;

/// A decimal number as it is written: `digits` without its point, which stands behind the first `point` of them.
struct Decimal<'a> {
    negative: bool,
    whole: &'a [u8],
    fraction: &'a [u8],
    point: i64,
}

/// Appends `text` as a `numeric` with `scale` digits after the point.
pub(super) fn encode(text: &str, precision: u16, scale: u16, out: &mut Vec<u8>) -> Result<(), Refusal> {
    let decimal = Decimal::parse(text.as_bytes())
        .ok_or_else(|| Refusal::new(Code::NotANumber, "is not a decimal number such as 123.45"))?;
    let Some((first, last)) = decimal.significant() else {
        head(0, 0, POSITIVE, scale, out);
        return Ok(());
    };
    let (whole_digits, fraction_digits) = (decimal.point - first, last + 1 - decimal.point);
    if whole_digits > i64::from(precision - scale) {
        let message = format!("is outside the range of numeric({precision},{scale})");
        return Err(Refusal::new(Code::OutOfRange, message));
    }
    if fraction_digits > i64::from(scale) {
        let message = format!("has more than the {scale} digits after the point that the column holds");
        return Err(Refusal::new(Code::TooPrecise, message));
    }
    decimal.encode(first, last, scale, out);
    Ok(())
}

impl<'a> Decimal<'a> {
    /// Reads `[+-]digits[.digits][e[+-]digits]`; digits may be missing on one side of the point.
    fn parse(text: &'a [u8]) -> Option<Self> {
        let (negative, text) = sign(text);
        let (whole, rest) = digits(text);
        let (fraction, rest) = match rest.strip_prefix(b".") {
            Some(rest) => digits(rest),
            None => (&rest[..0], rest),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let exponent = match rest {
            [] => 0,
            [b'e' | b'E', rest @ ..] => exponent(rest)?,
            _ => return None,
        };
        Some(Self {
            negative,
            whole,
            fraction,
            point: i64::try_from(whole.len()).ok()?.saturating_add(exponent),
        })
    }

    /// The digit of this index, as a number.
    fn digit(&self, index: usize) -> i16 {
        let ascii = match index.checked_sub(self.whole.len()) {
            None => self.whole[index],
            Some(index) => self.fraction[index],
        };
        i16::from(ascii - b'0')
    }

    /// The indexes of the first and the last digit that is not zero.
    fn significant(&self) -> Option<(i64, i64)> {
        let mut all = 0..self.whole.len() + self.fraction.len();
        let first = all.find(|index| self.digit(*index) != 0)?;
        let last = all.rfind(|index| self.digit(*index) != 0).unwrap_or(first);
        Some((i64::try_from(first).ok()?, i64::try_from(last).ok()?))
    }

    /// Appends a number that is known to fit: its digits `first` to `last` are within a precision of 1,000.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "indexes of digits, and weights of at most a thousand digits"
    )]
    fn encode(&self, first: i64, last: i64, scale: u16, out: &mut Vec<u8>) {
        // The power of ten of the digit at an index is point - 1 - index.
        let group_of = |index: i64| (self.point - 1 - index).div_euclid(GROUP);
        let (weight, lowest) = (group_of(first), group_of(last));
        let sign = if self.negative { NEGATIVE } else { POSITIVE };
        head((weight - lowest + 1) as i16, weight as i16, sign, scale, out);
        let (mut group, mut value) = (weight, 0_i16);
        for index in first..=last {
            if group_of(index) != group {
                out.extend_from_slice(&value.to_be_bytes());
                (group, value) = (group_of(index), 0);
            }
            let power = (self.point - 1 - index).rem_euclid(GROUP) as u32;
            value += self.digit(index as usize) * 10_i16.pow(power);
        }
        out.extend_from_slice(&value.to_be_bytes());
    }
}

fn head(count: i16, weight: i16, sign: u16, scale: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(&count.to_be_bytes());
    out.extend_from_slice(&weight.to_be_bytes());
    out.extend_from_slice(&sign.to_be_bytes());
    out.extend_from_slice(&scale.to_be_bytes());
}

fn sign(text: &[u8]) -> (bool, &[u8]) {
    match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    }
}

fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text
        .iter()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

/// An exponent; one that no number of a column can have is as good as any other.
fn exponent(text: &[u8]) -> Option<i64> {
    const ENOUGH: i64 = i64::MAX / 4;
    let (negative, text) = sign(text);
    let (digits, rest) = digits(text);
    if digits.is_empty() || !rest.is_empty() {
        return None;
    }
    let value = digits.iter().fold(0_i64, |value, digit| {
        value
            .saturating_mul(10)
            .saturating_add(i64::from(digit - b'0'))
            .min(ENOUGH)
    });
    Some(if negative { -value } else { value })
}
