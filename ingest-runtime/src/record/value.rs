//! One field's text, checked and encoded to PostgreSQL's binary format. Stricter than PostgreSQL's own reading:
//! no surrounding blanks, no rounding, no special values; what both accept means the same to both.

use nomnom_crds::column::ColumnType;
use uuid::Uuid;

use super::{Code, Refusal, json, numeric, time};

/// How much longer than its text a value can be, numbers with exponents aside: `1` as `numeric` (8 bytes of head
/// and 2 for each digit of base 10,000).
pub(super) const MAX_GROWTH: usize = 9;

/// Appends `text`, which is not empty unless the type is text, as a value of `column_type`.
pub(super) fn encode(column_type: ColumnType, text: &str, out: &mut Vec<u8>) -> Result<(), Refusal> {
    match column_type {
        ColumnType::Text => out.extend_from_slice(text.as_bytes()),
        ColumnType::Varchar(length) => varchar(text, length, out)?,
        ColumnType::Bigint => out.extend_from_slice(&integer::<i64>(text, "bigint")?.to_be_bytes()),
        ColumnType::Integer => out.extend_from_slice(&integer::<i32>(text, "integer")?.to_be_bytes()),
        ColumnType::Smallint => out.extend_from_slice(&integer::<i16>(text, "smallint")?.to_be_bytes()),
        ColumnType::Numeric { precision, scale } => numeric::encode(text, precision, scale, out)?,
        ColumnType::Boolean => out.push(u8::from(boolean(text)?)),
        ColumnType::Date => out.extend_from_slice(&time::date(text)?.to_be_bytes()),
        ColumnType::Timestamp => out.extend_from_slice(&time::timestamp(text)?.to_be_bytes()),
        ColumnType::Timestamptz => out.extend_from_slice(&time::timestamptz(text)?.to_be_bytes()),
        ColumnType::Uuid => out.extend_from_slice(uuid(text)?.as_bytes()),
        ColumnType::DoublePrecision => out.extend_from_slice(&double_precision(text)?.to_be_bytes()),
        ColumnType::Jsonb => {
            json::check(text)?;
            // The version of jsonb's binary format; PostgreSQL knows one.
            out.push(1);
            out.extend_from_slice(text.as_bytes());
        }
    }
    Ok(())
}

fn varchar(text: &str, length: u32, out: &mut Vec<u8>) -> Result<(), Refusal> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    // A character is at least a byte.
    if text.len() > length && text.chars().count() > length {
        let message = format!("has more than the {length} characters that the column holds");
        return Err(Refusal::new(Code::TooLong, message));
    }
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

fn integer<T: TryFrom<i64>>(text: &str, name: &str) -> Result<T, Refusal> {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    let out_of_range = || Refusal::new(Code::OutOfRange, format!("is outside the range of {name}"));
    match text.parse::<i64>() {
        Ok(number) => number.try_into().map_err(|_| out_of_range()),
        Err(error) if matches!(error.kind(), NegOverflow | PosOverflow) => Err(out_of_range()),
        Err(_) => Err(Refusal::new(
            Code::NotANumber,
            "is not a whole number such as 42 or -7",
        )),
    }
}

fn boolean(text: &str) -> Result<bool, Refusal> {
    let is_any_of = |words: &[&str]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is_any_of(&["t", "true", "y", "yes", "on", "1"]) {
        Ok(true)
    } else if is_any_of(&["f", "false", "n", "no", "off", "0"]) {
        Ok(false)
    } else {
        Err(Refusal::new(
            Code::NotABoolean,
            "is neither true (t, true, y, yes, on, 1) nor false (f, false, n, no, off, 0)",
        ))
    }
}

fn uuid(text: &str) -> Result<Uuid, Refusal> {
    // With 36 characters the hyphenated form, with 32 the one without hyphens; the crate knows more forms.
    let parsed = matches!(text.len(), 32 | 36).then(|| Uuid::try_parse(text));
    match parsed {
        Some(Ok(uuid)) => Ok(uuid),
        _ => Err(Refusal::new(
            Code::NotAUuid,
            "is not a UUID such as 018f4e3a-7b1c-7d2e-9f00-112233445566",
        )),
    }
}

fn double_precision(text: &str) -> Result<f64, Refusal> {
    let is_plain = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E'));
    let number = match text.parse::<f64>() {
        Ok(number) if is_plain => number,
        _ => {
            return Err(Refusal::new(
                Code::NotANumber,
                "is not a number such as 1.5 or -2e10",
            ));
        }
    };
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    let vanished = number == 0.0 && mantissa.bytes().any(|byte| matches!(byte, b'1'..=b'9'));
    if number.is_infinite() || vanished {
        return Err(Refusal::new(
            Code::OutOfRange,
            "is outside the range of double precision",
        ));
    }
    Ok(number)
}
