use proptest::prelude::*;
use serde_json::json;

use super::*;

const OURS: &str = r#"{"type":"veer-cni","runDir":"/run/veer","installedBy":"veer"}"#;
const OTHER: &str = r#"{"type":"veer-cni","runDir":"/run/other","installedBy":"veer"}"#;
const OPERATORS: &str = r#"{"type": "veer-cni"}"#;

fn list(plugins: &[&str]) -> String {
    format!("{{\"name\":\"n\",\"plugins\":[{}]}}", plugins.join(","))
}

const A: &str = r#"{"type":"a"}"#;
const B: &str = r#"{"type":"b"}"#;

#[test]
fn an_entry_comes_in_on_a_line_as_far_in_as_the_one_before() {
    let text =
        "{\n\t\"plugins\" : [\n\t\t{ \"type\": \"a\" },\n\t\t{ \"type\": \"b\" }\n\t] ,\n\t\"name\":\"n\"\n}";
    let expected = text.replace("\"b\" }", &format!("\"b\" }},\n\t\t{OURS}"));
    assert_eq!(with(text, OURS), Ok(expected));
}

#[test]
fn an_entry_that_is_there_keeps_its_place() {
    let before = list(&[A, OURS, B]);
    assert_eq!(with(&before, OURS).as_deref(), Ok(before.as_str()));
    assert_eq!(with(&before, OTHER), Ok(list(&[A, OTHER, B])));
    let spaced = list(&[A, &OURS.replace(',', " ,\n "), B]);
    assert_eq!(with(&spaced, OURS).as_deref(), Ok(spaced.as_str()), "the same in other words");
}

#[test]
fn an_entry_that_is_first_or_there_twice_becomes_the_last_one() {
    for plugins in [&[OURS, A][..], &[OURS, OTHER, A], &[OURS, A, OTHER], &[A, OURS, OTHER]] {
        assert_eq!(with(&list(plugins), OURS), Ok(list(&[A, OURS])), "{plugins:?}");
    }
}

#[test]
fn entries_go_with_what_separates_them() {
    for (before, after) in [
        (&[A, OURS][..], &[A][..]),
        (&[OURS, A], &[A]),
        (&[OURS, OTHER, A, OURS, B, OTHER], &[A, B]),
        (&[A, OURS, B], &[A, B]),
    ] {
        assert_eq!(without(&list(before)), Ok(Some(list(after))), "{before:?}");
    }
    assert_eq!(without(&list(&[A])), Ok(None));
    assert_eq!(without(&list(&[OURS])), Ok(None), "no list is left without a plugin");
}

#[test]
fn an_operators_entry_is_left_alone_and_ours_does_not_join_it() {
    assert_eq!(present(&list(&[A, OPERATORS])), Present::Operators);
    assert_eq!(with(&list(&[A, OPERATORS]), OURS), Ok(list(&[A, OPERATORS])));
    assert_eq!(with(&list(&[A, OPERATORS, OURS]), OURS), Ok(list(&[A, OPERATORS])));
    assert_eq!(without(&list(&[A, OPERATORS])), Ok(None));
}

#[test]
fn of_a_list_that_is_there_twice_the_last_one_counts() {
    let text = r#"{"plugins":[{"type":"a"}],"plugins":[{"type":"b"}]}"#;
    let expected = format!(r#"{{"plugins":[{{"type":"a"}}],"plugins":[{{"type":"b"}},{OURS}]}}"#);
    assert_eq!(with(text, OURS), Ok(expected));
}

#[test]
fn what_is_no_list_is_refused_in_words() {
    assert_eq!(with(r#"{"plugins":[]}"#, OURS), Err(TextError::NoPlugins));
    assert_eq!(with(r#"{"plugins":{}}"#, OURS), Err(TextError::NoPlugins));
    assert_eq!(with("{}", OURS), Err(TextError::NoPlugins));
    for text in ["", "{", "[]", r#"{"plugins":[1]} x"#] {
        assert!(matches!(with(text, OURS), Err(TextError::NotJson(_))), "{text}");
    }
}

#[test]
fn a_plugin_stands_in_its_list_as_it_was_written() {
    let text = "{ \"cniVersion\": \"0.3.1\",\n  \"type\": \"x\", \"name\": \"n\\u00e9\", \"n\": 1.50 }\n";
    let expected = format!(
        "{{\n  \"name\": \"n\\u00e9\",\n  \"cniVersion\": \"0.3.1\",\n  \"loadOnlyInlinedPlugins\": true,\n  \"installedBy\": \"veer\",\n  \"plugins\": [\n{},\n    {OURS}\n  ]\n}}\n",
        text.trim()
    );
    assert_eq!(wrap(text, OURS).as_deref(), Ok(expected.as_str()));
    assert_eq!(wrap(r#"{"type":"x"}"#, OURS), Err(TextError::NoName));
    assert_eq!(wrap(r#"{"type":"x","name":7}"#, OURS), Err(TextError::NoName));
}

/// JSON of any shape; keys that mean something are among the likely ones.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(json!("veer-cni")),
    ];
    let key = || prop_oneof![any::<String>(), Just("type".to_owned()), Just("plugins".to_owned())];
    leaf.prop_recursive(3, 24, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(key(), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A list as a vendor may write it, with anything beside its plugins.
fn any_list() -> impl Strategy<Value = String> {
    let plugin = prop_oneof![
        3 => any_json(),
        2 => any::<u8>().prop_map(|number| json!({"type": format!("p{number}"), "n": number})),
        1 => Just(json!({"type": "veer-cni", "logLevel": "debug"})),
    ];
    let others = prop::collection::btree_map(any::<String>(), any_json(), 0..4);
    (prop::collection::vec(plugin, 1..5), others, any::<bool>()).prop_map(|(plugins, others, pretty)| {
        let mut list: serde_json::Map<String, Value> = others.into_iter().collect();
        list.insert("plugins".to_owned(), plugins.into());
        if pretty { format!("{:#}\n", Value::Object(list)) } else { Value::Object(list).to_string() }
    })
}

proptest! {
    #[test]
    fn putting_in_and_taking_out_gives_the_same_bytes(text in any_list()) {
        let installed = with(&text, OURS).unwrap();
        let again = with(&installed, OURS).unwrap();
        prop_assert_eq!(&again, &installed);
        let upgraded = with(&installed, OTHER).unwrap();
        for state in [installed, upgraded] {
            let left = without(&state).unwrap().unwrap_or(state);
            prop_assert_eq!(&left, &text);
        }
    }

    #[test]
    fn a_list_means_the_same_but_for_our_entry(text in any_list()) {
        let mut expected: Value = serde_json::from_str(&text).unwrap();
        if present(&text) == Present::No {
            expected["plugins"].as_array_mut().unwrap().push(serde_json::from_str(OURS).unwrap());
        }
        let installed: Value = serde_json::from_str(&with(&text, OURS).unwrap()).unwrap();
        prop_assert_eq!(installed, expected);
    }
}
