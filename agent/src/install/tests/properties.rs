//! What holds for any directory.

use proptest::prelude::*;

use super::*;

const NAMES: [&str; 8] = [
    "00-multus.conf",
    "00-multus.conflist",
    "05-cilium.conflist",
    "10-a.conf",
    "10-a.conflist",
    "10-a.json",
    "20-b.conflist.cilium_bak",
    "n/10-x.conf",
];

fn content() -> impl Strategy<Value = String> {
    let plugin = prop_oneof![
        Just(r#"{"type":"bridge"}"#.to_owned()),
        Just(r#"{"type":"portmap", "capabilities":{"portMappings":true}}"#.to_owned()),
        Just(r#"{"type":"loopback"}"#.to_owned()),
        Just(r#"{"type":"veer-cni"}"#.to_owned()),
        Just(r#"{"type":"multus","delegates":[{"name":"n","type":"bridge"}]}"#.to_owned()),
        Just(r#"{"type":"multus","defaultDelegates":"x"}"#.to_owned()),
    ];
    let version = prop_oneof![Just("0.3.1"), Just("0.4.0"), Just("0.2.0"), Just("1.0.0")];
    let list = (prop::collection::vec(plugin, 0..4), version, any::<bool>()).prop_map(
        |(plugins, version, pretty)| {
            let gap = if pretty { "\n  " } else { "" };
            format!(
                r#"{{"name":"n",{gap}"cniVersion":"{version}",{gap}"plugins":[{gap}{}]}}"#,
                plugins.join(&format!(",{gap}"))
            )
        },
    );
    let plain = prop_oneof![Just("bridge"), Just("loopback"), Just("x\",\"defaultDelegates\":\"y")]
        .prop_map(|kind| format!("{{\"cniVersion\":\"0.3.1\",\"name\":\"n\", \"type\":\"{kind}\"}}\n"));
    prop_oneof![5 => list, 3 => plain, 1 => Just(String::new()), 1 => Just("{\"name\":".to_owned())]
}

fn any_directory() -> impl Strategy<Value = Directory> {
    prop::collection::btree_map(prop::sample::select(&NAMES[..]), content(), 0..5).prop_map(|files| {
        Directory {
            files: files
                .into_iter()
                .map(|(name, text)| (name.to_owned(), File::new(text.into_bytes())))
                .collect(),
        }
    })
}

fn any_wish() -> impl Strategy<Value = Wish> {
    let modes = [None, Some(Mode::Chained), Some(Mode::Owned), Some(Mode::Multus), Some(Mode::Dropin)];
    (prop::sample::select(modes.to_vec()), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(mode, reads_dropins, passes_broken, debug)| {
            let log_level = if debug { "debug" } else { "info" }.to_owned();
            Wish { mode, reads_dropins, passes_broken, entry: Entry { log_level, ..entry() }, primary: None }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever was there, in whatever mode, and however often the mode was changed in between.
    #[test]
    fn taking_away_gives_the_same_bytes(before in any_directory(), wishes in prop::collection::vec(any_wish(), 1..4)) {
        let mut state = before.clone();
        for wish in &wishes {
            if let Ok(planned) = plan(&state, wish) {
                state = taken(&state, &planned.steps, |_| {});
                let again = plan(&state, wish).unwrap();
                prop_assert_eq!(again.steps, Vec::new());
                prop_assert_eq!(again.placed, planned.placed);
            }
        }
        let after = taken(&state, &removal(&state), |_| {});
        prop_assert_eq!(after, before);
    }

    /// Power may go at any step.
    #[test]
    fn after_each_step_the_runtime_has_a_network(before in any_directory(), wish in any_wish()) {
        let Ok(planned) = plan(&before, &wish) else { return Ok(()) };
        let works = |state: &Directory| {
            let first = state.candidates().next().and_then(|name| state.network(name));
            assert!(first.is_some_and(|network| network.is_ok()), "{state:?}");
        };
        let worked = before.candidates().next().and_then(|name| before.network(name)).is_some_and(|network| network.is_ok());
        let after = taken(&before, &planned.steps, |state| if worked { works(state) });
        let mut between = before.clone();
        for step in &planned.steps {
            between.take(step);
            let finished = taken(&between, &plan(&between, &wish).unwrap().steps, |_| {});
            prop_assert_eq!(&finished, &after, "interrupted, and done again");
        }
        let mut between = after.clone();
        for step in &removal(&after) {
            between.take(step);
            prop_assert_eq!(&taken(&between, &removal(&between), |_| {}), &before, "interrupted, and removed again");
        }
        taken(&after, &removal(&after), |state| if worked { works(state) });
    }

    /// It is called once, behind the plugins of the list.
    #[test]
    fn veer_is_called_once_and_not_first(before in any_directory(), wish in any_wish()) {
        let Ok(planned) = plan(&before, &wish) else { return Ok(()) };
        let is_effective = planned.placed.is_effective() && planned.placed.mode != Mode::Multus;
        let has_operators = before.files.values().any(|file| {
            file.content.as_ref().is_ok_and(|bytes| String::from_utf8_lossy(bytes).contains(VEER))
        });
        if !is_effective || has_operators || wish.passes_broken {
            return Ok(());
        }
        let expected = called(&before, wish.reads_dropins);
        // What only brings up lo is no network.
        if expected == ["loopback"] {
            return Ok(());
        }
        let after = taken(&before, &planned.steps, |_| {});
        let mut types = called(&after, wish.reads_dropins);
        let place = types.iter().position(|kind| kind == VEER);
        prop_assert!(place.is_some_and(|place| place > 0), "{:?}", types);
        types.remove(place.unwrap());
        prop_assert_eq!(types, expected);
    }
}
