use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn accepts(bytes: &[u8]) -> bool {
    let mut scanner = Scanner::new(bytes);
    scanner.skip().and_then(|()| scanner.end()).is_ok()
}

/// JSON texts with every kind of value, white space and escapes.
fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("false".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<u64>().prop_map(|n| n.to_string()),
        any::<f64>()
            .prop_filter("finite", |x| x.is_finite())
            .prop_map(|x| format!("{x:e}")),
        "[0-9.eE+-]{0,6}",
        any::<String>().prop_map(|s| Value::String(s).to_string()),
        r#""[a-z\\"u0-9/dD]{0,8}""#,
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|v| format!("[{}]", v.join(" ,\t"))),
            prop::collection::vec(("[a-c]{0,3}", inner), 0..4).prop_map(|v| {
                let fields: Vec<String> = v.into_iter().map(|(k, v)| format!("\"{k}\" : {v}")).collect();
                format!("{{{}}}", fields.join(",\n"))
            }),
        ]
    })
}

proptest! {
    /// Property: the scanner accepts a text exactly if serde_json does, whole or damaged.
    #[test]
    fn accepts_what_serde_json_accepts(
        text in json(),
        cut in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        damage in 0u8..4,
    ) {
        let mut bytes = text.into_bytes();
        if !bytes.is_empty() {
            let at = cut.index(bytes.len());
            match damage {
                1 => bytes.truncate(at),
                2 => bytes[at] = byte,
                3 => { bytes.remove(at); }
                _ => {}
            }
        }
        prop_assert_eq!(
            accepts(&bytes),
            serde_json::from_slice::<Value>(&bytes).is_ok(),
            "{}", String::from_utf8_lossy(&bytes)
        );
    }

    /// Property: integers, strings and numbers have the value that serde_json gives them, or fail with it.
    #[test]
    fn values_are_those_of_serde_json(text in json()) {
        let bytes = text.as_bytes();
        let whole = |s: &mut Scanner<'_>| s.end().is_ok();
        let mut s = Scanner::new(bytes);
        let uint = s.uint().ok().filter(|_| whole(&mut s));
        prop_assert_eq!(uint, serde_json::from_slice::<u64>(bytes).ok());
        let mut s = Scanner::new(bytes);
        let string = s.string().ok().filter(|_| whole(&mut s)).map(std::borrow::Cow::into_owned);
        prop_assert_eq!(string, serde_json::from_slice::<String>(bytes).ok());
        let mut s = Scanner::new(bytes);
        let mut list = Vec::new();
        let list = s.uints(&mut list).ok().filter(|()| whole(&mut s)).map(|()| list.clone());
        prop_assert_eq!(list, serde_json::from_slice::<Vec<u64>>(bytes).ok());
        let mut s = Scanner::new(bytes);
        let number = s.number().ok().filter(|_| whole(&mut s));
        // serde_json's fast path may be off by one unit in the last place; Rust's own parser is exact
        let exact = serde_json::from_slice::<f64>(bytes).ok().map(|_| text.trim().parse::<f64>().unwrap());
        prop_assert_eq!(number, exact);
    }
}

#[test]
fn integers_beyond_64_bits_are_refused() {
    assert_eq!(Scanner::new(b"18446744073709551615").uint(), Ok(u64::MAX));
    for text in [
        "18446744073709551616",
        "99999999999999999999999999",
        "-1",
        "1.0",
        "1e3",
        "\"1\"",
        "",
        "01",
    ] {
        assert!(Scanner::new(text.as_bytes()).uint().is_err(), "{text}");
    }
    assert_eq!(Scanner::new(b"-9223372036854775808").int(), Ok(i64::MIN));
    assert!(Scanner::new(b"-9223372036854775809").int().is_err());
    assert!(Scanner::new(b"9223372036854775808").int().is_err());
}

#[test]
fn nesting_is_bounded_as_in_serde_json() {
    for depth in [126, 127, 128, 129, 100_000] {
        let text = "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(
            accepts(text.as_bytes()),
            serde_json::from_str::<Value>(&text).is_ok(),
            "{depth}"
        );
    }
}
