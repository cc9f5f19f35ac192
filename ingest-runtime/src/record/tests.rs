use nomnom_crds::runtime::RuntimeConfig;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;

use super::{Code, Decoder, InvalidRecord, Row, UnusableRecords, json::MAX_DEPTH};

fn config(delimiter: &str, records: &serde_json::Value) -> RuntimeConfig {
    let config = json!({
        "version": 1, "pipeline": {"namespace": "n", "name": "p", "uid": "u"}, "mode": "Sync",
        "delimiter": delimiter, "records": records,
        "database": {"schema": "public", "schemaPolicy": "Manage", "urlSource": "a file"},
        "limits": {"maxBodyBytes": 1024, "timeout": "1s"},
    });
    RuntimeConfig::from_json(config.to_string().as_bytes()).unwrap()
}

fn decoder(records: &serde_json::Value) -> Decoder {
    Decoder::new(&config("|", records)).unwrap()
}

fn orders() -> Decoder {
    decoder(&json!([
        {"match": "O", "table": "orders", "columns": [
            {"name": "key", "type": "bigint", "nullable": false},
            {"name": "status", "type": "varchar(2)", "nullable": false},
            {"name": "comment", "type": "text", "nullable": true}]},
        {"match": "L", "table": "lines", "columns": [{"name": "key", "type": "integer", "nullable": false}]},
    ]))
}

/// A row's fields, taken apart.
fn split(row: &Row) -> Vec<Option<Vec<u8>>> {
    let (mut rest, mut fields) = (&row.fields[..], Vec::new());
    while let Some((length, tail)) = rest.split_first_chunk() {
        let length = i32::from_be_bytes(*length);
        let (value, tail) = tail.split_at(usize::try_from(length).unwrap_or_default());
        fields.push((length >= 0).then(|| value.to_vec()));
        rest = tail;
    }
    fields
}

fn one_column(column_type: &str, text: &str) -> Result<Vec<u8>, Code> {
    let decoder = decoder(&json!([
        {"table": "t", "columns": [{"name": "a", "type": column_type, "nullable": false}]}
    ]));
    match decoder.decode(text.as_bytes()) {
        Ok(row) => Ok(split(&row).remove(0).unwrap()),
        Err(InvalidRecord { errors }) => Err(errors[0].code),
    }
}

#[test]
fn routes_by_the_first_field_and_drops_it() {
    let row = orders().decode(b"O|1|ok|hi").unwrap();
    assert_eq!(row.record_type, 0);
    let expected = [1_i64.to_be_bytes().to_vec(), b"ok".to_vec(), b"hi".to_vec()].map(Some);
    assert_eq!(split(&row), expected);
    let row = orders().decode(b"L|-2\r\n").unwrap();
    assert_eq!(
        (row.record_type, split(&row)),
        (1, vec![Some((-2_i32).to_be_bytes().to_vec())])
    );
}

#[test]
fn an_empty_field_is_null_or_empty_text_or_an_error() {
    let fields = split(&orders().decode(b"O|1||\n").unwrap());
    assert_eq!(fields[1..], [Some(Vec::new()), None]);
    let errors = orders().decode(b"O||ok|").unwrap_err().errors;
    assert_eq!(
        (errors[0].code, errors[0].position),
        (Code::MissingValue, Some(2))
    );
}

/// Name and position of a field.
type Place = (Option<&'static str>, Option<usize>);

#[test]
fn names_record_and_field() {
    let cases: [(&[u8], Code, Place); 14] = [
        (b"", Code::EmptyRecord, (None, None)),
        (b"\r\n", Code::EmptyRecord, (None, None)),
        (b"L|1\nL|2", Code::MoreThanOneRecord, (None, None)),
        (b"L|1\n\n", Code::MoreThanOneRecord, (None, None)),
        (b"X|1", Code::UnknownRecordType, (None, Some(1))),
        (b" L|1", Code::UnknownRecordType, (None, Some(1))),
        (b"L", Code::TooFewFields, (None, None)),
        (b"O|1|ok", Code::TooFewFields, (None, None)),
        (b"L|1|", Code::TooManyFields, (None, None)),
        (b"L|one", Code::NotANumber, (Some("key"), Some(2))),
        (b"O|1|okay|", Code::TooLong, (Some("status"), Some(3))),
        (b"O|1|ok|\xff", Code::InvalidUtf8, (Some("comment"), Some(4))),
        (b"O|1|o\0|", Code::NulCharacter, (Some("status"), Some(3))),
        (b"L|1|2|\xff", Code::InvalidUtf8, (None, Some(4))),
    ];
    for (line, code, place) in cases {
        let errors = orders().decode(line).unwrap_err().errors;
        let error = &errors[0];
        let found = (error.field.as_deref(), error.position);
        assert_eq!(
            (error.code, found),
            (code, place),
            "{}",
            String::from_utf8_lossy(line)
        );
    }
}

#[test]
fn tells_all_errors_of_a_record_up_to_ten_and_never_a_value() {
    let errors = orders().decode(b"O|secret|secret|").unwrap_err().errors;
    assert_eq!(errors.len(), 2);
    assert!(errors.iter().all(|error| !error.message.contains("secret")));

    let columns: Vec<_> = (0..20)
        .map(|index| json!({"name": format!("c{index}"), "type": "integer", "nullable": false}))
        .collect();
    let many = decoder(&json!([{"table": "t", "columns": columns}]));
    assert_eq!(
        many.decode("x|".repeat(19).as_bytes()).unwrap_err().errors.len(),
        10
    );
}

/// A type, a text and the value's bytes in hexadecimal. A numeric is a count of digits, the weight of the first,
/// a sign and a scale, and digits of base 10,000.
#[rustfmt::skip]
const ENCODED: &[(&str, &str, &str)] = &[
    ("bigint", "-9223372036854775808", "8000000000000000"),
    ("integer", "+7", "00000007"),
    ("smallint", "007", "0007"),
    ("varchar(2)", "äö", "c3a4c3b6"),
    ("boolean", "Yes", "01"),
    ("boolean", "0", "00"),
    ("date", "2000-01-01", "00000000"),
    ("date", "1999-12-31", "ffffffff"),
    ("date", "2024-02-29", "00002279"),
    ("timestamp", "2000-01-01T00:00", "0000000000000000"),
    ("timestamp", "2000-01-01 00:00:01.5", "000000000016e360"),
    ("timestamptz", "2000-01-01T02:00:00.0000010+02:00", "0000000000000001"),
    ("timestamptz", "1999-12-31t23:00:00-01", "0000000000000000"),
    ("timestamptz", "2000-01-01T00:00:00z", "0000000000000000"),
    ("double precision", "1.5e3", "4097700000000000"),
    ("double precision", "-0", "8000000000000000"),
    ("uuid", "00000000-0000-8000-8000-0000000000FF", "000000000000800080000000000000ff"),
    ("jsonb", "{}", "017b7d"),
    ("numeric(15,2)", "123.45", "0002000000000002007b1194"),
    ("numeric(15,2)", "-0.00", "0000000000000002"),
    ("numeric(15,2)", "-12345.6", "0003000140000002000109291770"),
    ("numeric(15,2)", "1.500e2", "00010000000000020096"),
    ("numeric(15,2)", "1000000000000", "00010003000000020001"),
    ("numeric(20,4)", "1000000000000.0001", "000500030000000400010000000000000001"),
    ("numeric(9,9)", ".000000001", "0001fffd0000000903e8"),
    ("numeric(2,1)", "9.", "00010000000000010009"),
    ("numeric(2,1)", "0e99999999999999999999", "0000000000000001"),
];

#[test]
fn encodes_every_type() {
    for (column_type, text, expected) in ENCODED {
        let encoded = one_column(column_type, text).map(|bytes| {
            bytes
                .iter()
                .fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
        });
        assert_eq!(encoded.as_deref(), Ok(*expected), "{column_type} {text}");
    }
}

/// A type, what is wrong, and texts that it is wrong with.
#[rustfmt::skip]
const REFUSED: &[(&str, Code, &[&str])] = &[
    ("bigint", Code::NotANumber, &["1.0", "1e3", " 1", "1 ", "0x1", "1_0", "-", "+", "--1", "NaN", "١"]),
    ("bigint", Code::OutOfRange, &["9223372036854775808", "-9223372036854775809"]),
    ("integer", Code::OutOfRange, &["2147483648", "-2147483649", "99999999999999999999"]),
    ("smallint", Code::OutOfRange, &["32768", "-32769"]),
    ("numeric(5,2)", Code::NotANumber, &[".", "1,5", "1e", "1e+", "e1", "NaN", "Infinity", "1.2.3", " 1", "0x1"]),
    ("numeric(5,2)", Code::OutOfRange, &["1000", "-1000.00", "1e3", "1e99999999999999999999", "999999"]),
    ("numeric(5,2)", Code::TooPrecise, &["1.234", "999.999", "1e-3", "0.001", "1e-99999999999999999999"]),
    ("varchar(2)", Code::TooLong, &["abc", "äöü", "ab "]),
    ("boolean", Code::NotABoolean, &["2", "maybe", "tru", " t"]),
    ("date", Code::NotADate, &["2024-1-1", "20240101", "2024/01/01", "01-01-2024", "2024-01-01 ", "today", "+2024-01-01"]),
    ("date", Code::NoSuchDate, &["2023-02-29", "2024-02-30", "2024-13-01", "2024-00-01", "2024-01-00", "0000-01-01"]),
    ("timestamp", Code::NotATimestamp, &["2024-01-01", "2024-01-01T", "2024-01-01T1:00", "2024-01-01T10", "now"]),
    ("timestamp", Code::NotATimestamp, &["2024-01-01T10:00:00.", "2024-01-01T10:00:00 Z", "2024-01-01T10:00:00+25:00"]),
    ("timestamp", Code::NoSuchTime, &["2024-01-01T24:00:00", "2024-01-01T23:60:00", "2024-01-01T23:59:60"]),
    ("timestamp", Code::NoSuchDate, &["2023-02-29T00:00:00"]),
    ("timestamp", Code::TooPrecise, &["2024-01-01T00:00:00.1234567"]),
    ("timestamp", Code::OffsetNotAllowed, &["2024-01-01T00:00:00Z", "2024-01-01T00:00:00+02:00"]),
    ("timestamptz", Code::OffsetMissing, &["2024-01-01T00:00:00"]),
    ("double precision", Code::NotANumber, &["nan", "inf", "-Infinity", "1,5", ".", "1e", "0x1p3", "1 "]),
    ("double precision", Code::OutOfRange, &["1e309", "-1e309", "1e-400"]),
    ("uuid", Code::NotAUuid, &["x", "{018f4e3a-7b1c-7d2e-9f00-112233445566}", "018f4e3a-7b1c-7d2e-9f00-11223344556g"]),
    ("jsonb", Code::NotJson, &["{", "[1,]", "{\"a\"}", "{a:1}", "01", "1.", "-", "+1", "tru", "'a'", "\"a", "1 2", "[1}"]),
    ("jsonb", Code::NotJson, &["{\"a\":1]", "\"\\x\"", "NaN", "]", ",", "{\"a\":1,}", "\"\t\"", "1e999999", "1e-99999"]),
    ("jsonb", Code::NotJson, &["\"\\u0000\"", "\"\\ud800\"", "\"\\udc00\"", "\"\\ud800\\u0041\""]),
];

#[test]
fn refuses_what_a_column_cannot_hold() {
    for (column_type, code, texts) in REFUSED {
        for text in *texts {
            assert_eq!(
                one_column(column_type, text),
                Err(*code),
                "{column_type} {text:?}"
            );
        }
    }
}

#[test]
fn reads_json_of_every_shape_to_a_bounded_depth() {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    for text in [
        "null",
        "-0.5e+3",
        "\"\\ud83d\\ude00 \\\" é\"",
        " [ ] ",
        "[[],{}]",
        "{\"a\":[1,{\"b\":null}],\"c\":\"\"}",
        "[true , false]",
        "{\"\":{}}",
        &nested(MAX_DEPTH as usize + 1),
    ] {
        assert!(one_column("jsonb", text).is_ok(), "{text}");
    }
    assert_eq!(
        one_column("jsonb", &nested(MAX_DEPTH as usize + 2)),
        Err(Code::NotJson)
    );
}

/// Pieces that values are made of, and what must not be in them.
const PIECES: &[&str] = &[
    "0", "1", "9", "00", "10000", "-", "+", ".", "e", "E", "T", "Z", ":", " ", "2024", "-02", "-30", "12:30",
    "t", "true", "null", "[", "]", "{", "}", "\"", ",", "\\", "\\u0000", "\\ud800", "ä", "日", "\t", "\r",
    "\n", "\0", "|",
];

#[test]
fn whatever_is_sent_is_a_row_of_the_right_shape_or_an_error() {
    const SEED: u64 = 3;
    let types = [
        "text",
        "varchar(3)",
        "bigint",
        "integer",
        "smallint",
        "numeric(9,4)",
        "numeric(1000,1000)",
        "boolean",
        "date",
        "timestamp",
        "timestamptz",
        "uuid",
        "double precision",
        "jsonb",
        // The last field: a line end there would be the record's.
        "text",
    ];
    let columns: Vec<_> = types
        .map(|name| json!({"name": name, "type": name, "nullable": true}))
        .into();
    let decoder = decoder(&json!([{"table": "t", "columns": columns}]));
    let mut random = StdRng::seed_from_u64(SEED);
    for _ in 0..20_000 {
        // One field of pieces among empty ones, so that it is often decoded.
        let index = random.random_range(0..types.len() - 1);
        let value: String = (0..random.random_range(0..8))
            .map(|_| PIECES[random.random_range(0..PIECES.len())])
            .collect();
        let mut fields = vec![""; types.len()];
        fields[index] = &value;
        match decoder.decode(fields.join("|").as_bytes()) {
            Ok(row) => {
                let found = split(&row);
                assert_eq!(found.len(), types.len(), "{value:?}");
                assert_eq!(found[index].is_some(), !value.is_empty(), "{value:?}");
            }
            Err(InvalidRecord { errors }) => assert!(!errors.is_empty()),
        }
    }
}

#[test]
fn refuses_a_configuration_that_it_cannot_route_by() {
    let column = json!([{"name": "a", "type": "text", "nullable": false}]);
    let plain = json!({"table": "t", "columns": column});
    let error = |delimiter, records| Decoder::new(&config(delimiter, &records)).unwrap_err();
    assert_eq!(error("ß", json!([plain])), UnusableRecords::Delimiter('ß'));
    assert_eq!(error("|", json!([])), UnusableRecords::Match);
    assert_eq!(error("|", json!([plain, plain])), UnusableRecords::Match);
}
