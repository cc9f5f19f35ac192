use nomnom_crds::runtime::RuntimeConfig;
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

#[test]
fn names_record_and_field() {
    let cases: [(&[u8], Code, Option<&str>, Option<usize>); 14] = [
        (b"", Code::EmptyRecord, None, None),
        (b"\r\n", Code::EmptyRecord, None, None),
        (b"L|1\nL|2", Code::MoreThanOneRecord, None, None),
        (b"L|1\n\n", Code::MoreThanOneRecord, None, None),
        (b"X|1", Code::UnknownRecordType, None, Some(1)),
        (b" L|1", Code::UnknownRecordType, None, Some(1)),
        (b"L", Code::TooFewFields, None, None),
        (b"O|1|ok", Code::TooFewFields, None, None),
        (b"L|1|", Code::TooManyFields, None, None),
        (b"L|one", Code::NotANumber, Some("key"), Some(2)),
        (b"O|1|okay|", Code::TooLong, Some("status"), Some(3)),
        (b"O|1|ok|\xff", Code::InvalidUtf8, Some("comment"), Some(4)),
        (b"O|1|o\0|", Code::NulCharacter, Some("status"), Some(3)),
        (b"L|1|2|\xff", Code::InvalidUtf8, None, Some(4)),
    ];
    for (line, code, field, position) in cases {
        let errors = orders().decode(line).unwrap_err().errors;
        let error = &errors[0];
        let found = (error.code, error.field.as_deref(), error.position);
        assert_eq!(
            found,
            (code, field, position),
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

#[test]
fn encodes_every_type() {
    let numeric = |head: [i16; 4], digits: &[i16]| -> Vec<u8> {
        head.iter()
            .chain(digits)
            .flat_map(|part| part.to_be_bytes())
            .collect()
    };
    let cases = [
        ("bigint", "-9223372036854775808", i64::MIN.to_be_bytes().to_vec()),
        ("integer", "+7", 7_i32.to_be_bytes().to_vec()),
        ("smallint", "007", 7_i16.to_be_bytes().to_vec()),
        ("varchar(2)", "äö", "äö".as_bytes().to_vec()),
        ("boolean", "Yes", vec![1]),
        ("boolean", "0", vec![0]),
        ("date", "2000-01-01", 0_i32.to_be_bytes().to_vec()),
        ("date", "1999-12-31", (-1_i32).to_be_bytes().to_vec()),
        ("date", "2024-02-29", 8825_i32.to_be_bytes().to_vec()),
        ("timestamp", "2000-01-01T00:00", 0_i64.to_be_bytes().to_vec()),
        (
            "timestamp",
            "2000-01-01 00:00:01.5",
            1_500_000_i64.to_be_bytes().to_vec(),
        ),
        (
            "timestamptz",
            "2000-01-01T02:00:00.0000010+02:00",
            1_i64.to_be_bytes().to_vec(),
        ),
        (
            "timestamptz",
            "1999-12-31t23:00:00-01",
            0_i64.to_be_bytes().to_vec(),
        ),
        (
            "timestamptz",
            "2000-01-01T00:00:00z",
            0_i64.to_be_bytes().to_vec(),
        ),
        ("double precision", "1.5e3", 1500_f64.to_be_bytes().to_vec()),
        ("double precision", "-0", (-0.0_f64).to_be_bytes().to_vec()),
        (
            "uuid",
            "00000000-0000-8000-8000-0000000000FF",
            0x8000_8000_0000_0000_00ff_u128.to_be_bytes().to_vec(),
        ),
        ("jsonb", "{}", b"\x01{}".to_vec()),
        ("numeric(15,2)", "123.45", numeric([2, 0, 0, 2], &[123, 4500])),
        ("numeric(15,2)", "-0.00", numeric([0, 0, 0, 2], &[])),
        (
            "numeric(15,2)",
            "-12345.6",
            numeric([3, 1, 0x4000, 2], &[1, 2345, 6000]),
        ),
        ("numeric(15,2)", "1.500e2", numeric([1, 0, 0, 2], &[150])),
        ("numeric(15,2)", "1000000000000", numeric([1, 3, 0, 2], &[1])),
        (
            "numeric(20,4)",
            "1000000000000.0001",
            numeric([5, 3, 0, 4], &[1, 0, 0, 0, 1]),
        ),
        ("numeric(9,9)", ".000000001", numeric([1, -3, 0, 9], &[1000])),
        ("numeric(2,1)", "9.", numeric([1, 0, 0, 1], &[9])),
        (
            "numeric(2,1)",
            "0e99999999999999999999",
            numeric([0, 0, 0, 1], &[]),
        ),
    ];
    for (column_type, text, expected) in cases {
        assert_eq!(
            one_column(column_type, text),
            Ok(expected),
            "{column_type} {text}"
        );
    }
}

#[test]
fn refuses_what_a_column_cannot_hold() {
    use Code::{
        MissingValue, NoSuchDate, NoSuchTime, NotABoolean, NotADate, NotANumber, NotATimestamp, NotAUuid,
        NotJson, OffsetMissing, OffsetNotAllowed, OutOfRange, TooLong, TooPrecise,
    };
    let cases = [
        (
            "bigint",
            NotANumber,
            &[
                "1.0", "1e3", " 1", "1 ", "0x1", "1_0", "-", "+", "--1", "NaN", "١",
            ][..],
        ),
        (
            "bigint",
            OutOfRange,
            &["9223372036854775808", "-9223372036854775809"],
        ),
        (
            "integer",
            OutOfRange,
            &["2147483648", "-2147483649", "99999999999999999999"],
        ),
        ("smallint", OutOfRange, &["32768", "-32769"]),
        (
            "numeric(5,2)",
            NotANumber,
            &[
                "", ".", "1,5", "1e", "1e+", "e1", "NaN", "Infinity", "1.2.3", " 1", "0x1",
            ][1..],
        ),
        (
            "numeric(5,2)",
            OutOfRange,
            &["1000", "-1000.00", "1e3", "1e99999999999999999999", "999999"],
        ),
        (
            "numeric(5,2)",
            TooPrecise,
            &["1.234", "999.999", "1e-3", "0.001", "1e-99999999999999999999"],
        ),
        ("varchar(2)", TooLong, &["abc", "äöü", "ab "]),
        ("boolean", NotABoolean, &["2", "maybe", "tru", " t"]),
        (
            "date",
            NotADate,
            &[
                "2024-1-1",
                "20240101",
                "2024/01/01",
                "01-01-2024",
                "2024-01-01 ",
                "today",
                "+2024-01-01",
                "infinity",
            ],
        ),
        (
            "date",
            NoSuchDate,
            &[
                "2023-02-29",
                "2024-02-30",
                "2024-13-01",
                "2024-00-01",
                "2024-01-00",
                "0000-01-01",
                "1900-02-29",
            ],
        ),
        (
            "timestamp",
            NotATimestamp,
            &[
                "2024-01-01",
                "2024-01-01T",
                "2024-01-01T1:00",
                "2024-01-01T10",
                "2024-01-01T10:00:00.",
                "2024-01-01T10:00:00 Z",
                "now",
                "2024-01-01T10:00:00+25:00",
                "2024-01-01T10:00:00+1",
            ],
        ),
        (
            "timestamp",
            NoSuchTime,
            &[
                "2024-01-01T24:00:00",
                "2024-01-01T23:60:00",
                "2024-01-01T23:59:60",
            ],
        ),
        ("timestamp", NoSuchDate, &["2023-02-29T00:00:00"]),
        ("timestamp", TooPrecise, &["2024-01-01T00:00:00.1234567"]),
        (
            "timestamp",
            OffsetNotAllowed,
            &["2024-01-01T00:00:00Z", "2024-01-01T00:00:00+02:00"],
        ),
        ("timestamptz", OffsetMissing, &["2024-01-01T00:00:00"]),
        (
            "double precision",
            NotANumber,
            &["nan", "inf", "-Infinity", "1,5", ".", "1e", "0x1p3", "1 "],
        ),
        ("double precision", OutOfRange, &["1e309", "-1e309", "1e-400"]),
        (
            "uuid",
            NotAUuid,
            &[
                "x",
                "{018f4e3a-7b1c-7d2e-9f00-112233445566}",
                "018f4e3a-7b1c-7d2e-9f00-11223344556g",
                "018f4e3a7b1c-7d2e-9f00-1122334455667",
            ],
        ),
        (
            "jsonb",
            NotJson,
            &[
                "{",
                "[1,]",
                "{\"a\"}",
                "{a:1}",
                "01",
                "1.",
                "-",
                "+1",
                "tru",
                "'a'",
                "\"a",
                "1 2",
                "[1}",
                "{\"a\":1]",
                "\"\\x\"",
                "NaN",
                "]",
                ",",
                "{\"a\":1,}",
            ],
        ),
        (
            "jsonb",
            NotJson,
            &[
                "\"\\u0000\"",
                "\"\\ud800\"",
                "\"\\udc00\"",
                "\"\\ud800\\u0041\"",
                "1e999999",
                "1e-99999",
                "\"\t\"",
            ],
        ),
        ("integer", MissingValue, &["\n"][1..]),
    ];
    for (column_type, code, texts) in cases {
        for text in texts {
            assert_eq!(one_column(column_type, text), Err(code), "{column_type} {text:?}");
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

#[test]
fn refuses_a_configuration_that_it_cannot_route_by() {
    let column = json!([{"name": "a", "type": "text", "nullable": false}]);
    let plain = json!({"table": "t", "columns": column});
    let error = |delimiter, records| Decoder::new(&config(delimiter, &records)).unwrap_err();
    assert_eq!(error("ß", json!([plain])), UnusableRecords::Delimiter('ß'));
    assert_eq!(error("|", json!([])), UnusableRecords::Match);
    assert_eq!(error("|", json!([plain, plain])), UnusableRecords::Match);
}
