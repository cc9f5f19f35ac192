//! The `Idempotency-Key` header of the IETF's draft: a quoted string of RFC 9651, or a bare token as most
//! clients send it. `abc` and `"abc"` are the same key.

use http::{HeaderMap, HeaderName};

use super::problem::{Problem, ProblemKind};

/// The header, lower case.
const NAME: HeaderName = HeaderName::from_static("idempotency-key");
/// The longest key in characters: four times a quoted UUID, and a name for the order besides.
const MAX_LENGTH: usize = 255;

/// The key of a request, where it has one.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<String>, Box<Problem>> {
    let mut values = headers.get_all(NAME).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let invalid = |detail: &'static str| Problem::new(ProblemKind::InvalidIdempotencyKey, detail);
    if values.next().is_some() {
        return Err(invalid("the header is there more than once"));
    }
    let parsed = value.to_str().ok().and_then(|text| parse(text.trim()));
    let key = parsed.ok_or_else(|| {
        invalid("write a quoted string or a token of visible ASCII characters, without a list or parameters")
    })?;
    match key.len() {
        0 => Err(invalid("the key is empty")),
        1..=MAX_LENGTH => Ok(Some(key)),
        _ => Err(invalid("the key is longer than 255 characters")),
    }
}

fn parse(text: &str) -> Option<String> {
    match text.strip_prefix('"') {
        Some(rest) => unquote(rest.strip_suffix('"')?),
        None => text.bytes().all(is_bare).then(|| text.to_owned()),
    }
}

/// What stands between the quotes of a string of RFC 9651, which knows two escapes.
fn unquote(text: &str) -> Option<String> {
    let (mut key, mut characters) = (String::with_capacity(text.len()), text.chars());
    while let Some(character) = characters.next() {
        match character {
            '"' => return None,
            '\\' => key.push(characters.next().filter(|next| matches!(next, '"' | '\\'))?),
            ' '..='~' => key.push(character),
            _ => return None,
        }
    }
    Some(key)
}

/// Visible, and none of the characters that a list, a parameter or a quoted string is made of.
fn is_bare(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn read(value: &str) -> Result<Option<String>, &'static str> {
        let mut headers = HeaderMap::new();
        headers.insert(NAME, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        key(&headers).map_err(|problem| problem.kind.name())
    }

    #[test]
    fn reads_strings_and_tokens() {
        let uuid = "8e03978e-40d5-43dd-bc93-6894a57f9324";
        for value in [uuid.to_owned(), format!("\"{uuid}\""), format!("  {uuid} ")] {
            assert_eq!(read(&value), Ok(Some(uuid.to_owned())));
        }
        assert_eq!(read(r#""a \"b\" \\""#), Ok(Some(r#"a "b" \"#.to_owned())));
        assert_eq!(read("YWJj+/=="), Ok(Some("YWJj+/==".to_owned())));
        assert!(read(&"k".repeat(255)).is_ok());
        assert_eq!(key(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn refuses_what_is_neither() {
        let long = "k".repeat(256);
        for value in [
            "",
            "\"\"",
            "\"a",
            "a\"",
            "a b",
            "a, b",
            "\"a\";p=1",
            "\"a\\n\"",
            "\"ä\"",
            "\"",
            &long,
        ] {
            assert_eq!(read(value), Err("invalid-idempotency-key"), "{value}");
        }
        let mut twice = HeaderMap::new();
        twice.append(NAME, HeaderValue::from_static("a"));
        twice.append(NAME, HeaderValue::from_static("a"));
        assert!(key(&twice).is_err());
    }
}
