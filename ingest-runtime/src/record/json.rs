//! Whether a text is JSON that `jsonb` holds: RFC 8259, without `\u0000`, unpaired surrogates and numbers that
//! `numeric` cannot hold. One pass, no allocation: the nesting is a stack of bits.

use super::{Code, Refusal};

/// The deepest nesting: the bits of the stack. PostgreSQL's own limit depends on its `max_stack_depth`.
pub(super) const MAX_DEPTH: u32 = u128::BITS;
/// The most digits before and after the point of PostgreSQL's `numeric`.
const MAX_WHOLE_DIGITS: i64 = 131_072;
const MAX_FRACTION_DIGITS: i64 = 16_383;

/// Refuses what PostgreSQL would refuse as `jsonb`.
pub(super) fn check(text: &str) -> Result<(), Refusal> {
    let mut reader = Reader {
        rest: text.as_bytes(),
        nesting: 0,
        depth: 0,
    };
    reader.document().map_err(|problem| {
        let message = match problem {
            Problem::Malformed => "is not valid JSON".into(),
            Problem::TooDeep => format!("is nested deeper than {MAX_DEPTH} levels"),
            Problem::Nul => "holds \\u0000, which PostgreSQL cannot store".into(),
            Problem::Surrogate => "holds half of a surrogate pair".into(),
            Problem::Number => "holds a number that PostgreSQL cannot store".into(),
        };
        Refusal::new(Code::NotJson, message)
    })
}

enum Problem {
    Malformed,
    TooDeep,
    Nul,
    Surrogate,
    Number,
}

type Checked = Result<(), Problem>;

struct Reader<'a> {
    rest: &'a [u8],
    /// One bit for each level, the innermost lowest: 1 is an object.
    nesting: u128,
    depth: u32,
}

impl Reader<'_> {
    fn document(&mut self) -> Checked {
        loop {
            self.blanks();
            // An opened array or object goes on with its first value, unless it is empty.
            if self.value()? {
                continue;
            }
            if !self.after_value()? {
                return if self.rest.is_empty() {
                    Ok(())
                } else {
                    Err(Problem::Malformed)
                };
            }
        }
    }

    /// Reads a value; true where it is the head of an array or object that has a first value to come.
    fn value(&mut self) -> Result<bool, Problem> {
        match self.next()? {
            b'"' => self.string()?,
            b'[' => return self.open(false, b']'),
            b'{' => return self.open(true, b'}'),
            b't' => self.expect(b"rue")?,
            b'f' => self.expect(b"alse")?,
            b'n' => self.expect(b"ull")?,
            b'-' => {
                let first = self.next()?;
                self.number(first)?;
            }
            digit => self.number(digit)?,
        }
        Ok(false)
    }

    fn open(&mut self, object: bool, end: u8) -> Result<bool, Problem> {
        self.blanks();
        if self.take(end) {
            return Ok(false);
        }
        if self.depth == MAX_DEPTH {
            return Err(Problem::TooDeep);
        }
        self.depth += 1;
        self.nesting = self.nesting << 1 | u128::from(object);
        if object {
            self.key()?;
        }
        Ok(true)
    }

    /// Reads what stands behind a value: true where another one follows, false at the end of the document.
    fn after_value(&mut self) -> Result<bool, Problem> {
        loop {
            self.blanks();
            if self.depth == 0 {
                return Ok(false);
            }
            let object = self.nesting & 1 == 1;
            match (self.next()?, object) {
                (b',', false) => return Ok(true),
                (b',', true) => {
                    self.blanks();
                    self.key()?;
                    return Ok(true);
                }
                (b']', false) | (b'}', true) => {
                    self.depth -= 1;
                    self.nesting >>= 1;
                }
                _ => return Err(Problem::Malformed),
            }
        }
    }

    fn key(&mut self) -> Checked {
        self.expect(b"\"")?;
        self.string()?;
        self.blanks();
        self.expect(b":")
    }

    /// Reads a string behind its first quote.
    fn string(&mut self) -> Checked {
        loop {
            match self.next()? {
                b'"' => return Ok(()),
                b'\\' => self.escape()?,
                0..0x20 => return Err(Problem::Malformed),
                _ => {}
            }
        }
    }

    fn escape(&mut self) -> Checked {
        match self.next()? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Ok(()),
            b'u' => match self.unit()? {
                0 => Err(Problem::Nul),
                0xD800..0xDC00 => {
                    self.expect(b"\\u").map_err(|_| Problem::Surrogate)?;
                    match self.unit()? {
                        0xDC00..0xE000 => Ok(()),
                        _ => Err(Problem::Surrogate),
                    }
                }
                0xDC00..0xE000 => Err(Problem::Surrogate),
                _ => Ok(()),
            },
            _ => Err(Problem::Malformed),
        }
    }

    fn unit(&mut self) -> Result<u32, Problem> {
        let mut unit = 0;
        for _ in 0..4 {
            let digit = char::from(self.next()?).to_digit(16);
            unit = unit * 16 + digit.ok_or(Problem::Malformed)?;
        }
        Ok(unit)
    }

    /// Reads a number whose first digit was read.
    fn number(&mut self, first: u8) -> Checked {
        let whole = match first {
            b'0' => 1,
            b'1'..=b'9' => 1 + self.digits(),
            _ => return Err(Problem::Malformed),
        };
        let fraction = if self.take(b'.') { self.some_digits()? } else { 0 };
        let exponent = if self.take(b'e') || self.take(b'E') {
            self.exponent()?
        } else {
            0
        };
        if whole + exponent > MAX_WHOLE_DIGITS || fraction - exponent > MAX_FRACTION_DIGITS {
            return Err(Problem::Number);
        }
        Ok(())
    }

    /// An exponent; one that is far too large stays far too large.
    fn exponent(&mut self) -> Result<i64, Problem> {
        let negative = self.take(b'-');
        if !negative {
            self.take(b'+');
        }
        let digits = self.rest;
        let count = usize::try_from(self.some_digits()?).unwrap_or_default();
        let value = digits[..count].iter().fold(0_i64, |value, digit| {
            (value * 10 + i64::from(digit - b'0')).min(i64::from(i32::MAX))
        });
        Ok(if negative { -value } else { value })
    }

    fn some_digits(&mut self) -> Result<i64, Problem> {
        match self.digits() {
            0 => Err(Problem::Malformed),
            count => Ok(count),
        }
    }

    fn digits(&mut self) -> i64 {
        let mut count = 0;
        while let [b'0'..=b'9', rest @ ..] = self.rest {
            self.rest = rest;
            count += 1;
        }
        count
    }

    fn blanks(&mut self) {
        while let [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        match self.rest.split_first() {
            Some((first, rest)) if *first == byte => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn expect(&mut self, text: &[u8]) -> Checked {
        self.rest = self.rest.strip_prefix(text).ok_or(Problem::Malformed)?;
        Ok(())
    }

    fn next(&mut self) -> Result<u8, Problem> {
        let (first, rest) = self.rest.split_first().ok_or(Problem::Malformed)?;
        self.rest = rest;
        Ok(*first)
    }
}
