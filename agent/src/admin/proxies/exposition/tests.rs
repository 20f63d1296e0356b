use proptest::prelude::*;

use super::*;

fn pod() -> Origin {
    Origin::Pod { namespace: "shop".to_owned(), name: "cart-1".to_owned() }
}

/// What becomes of a text, and how many of its lines are lost.
fn passed(origin: Origin, text: &str) -> (String, u64) {
    let mut exposition = Exposition::of(origin);
    let mut out = String::new();
    exposition.take(text.as_bytes(), &mut out);
    let dropped = exposition.end();
    (out, dropped)
}

#[test]
fn samples_of_a_pod_say_whose_they_are() {
    let text = "# HELP a What it is\n# TYPE a counter\na{x=\"1\"} 2\na{} 3 1700000000\n\na 4\n# TYPE h histogram\n\
                h_bucket{le=\"+Inf\"} +Inf\nh_sum 1e3\nh_count NaN\n";
    let own = "veer_namespace=\"shop\",veer_pod=\"cart-1\"";
    let expected = format!(
        "# TYPE a counter\na{{{own},x=\"1\"}} 2\na{{{own}}} 3\na{{{own}}} 4\n# TYPE h histogram\n\
         h_bucket{{{own},le=\"+Inf\"}} +Inf\nh_sum{{{own}}} 1e3\nh_count{{{own}}} NaN\n"
    );
    assert_eq!(passed(pod(), text), (expected, 0));
}

#[test]
fn what_the_nodes_envoy_says_stays_as_it_is_but_for_which_envoy_it_is() {
    let text = "# TYPE a counter\na{veer_pod=\"x.y\"} 2\na{} 3\n";
    let node = |number: Option<&str>| Origin::Node { number: number.map(str::to_owned), only: None };
    let plain = "# TYPE a counter\na{veer_pod=\"x.y\"} 2\na 3\n";
    assert_eq!(passed(node(None), text), (plain.to_owned(), 0));
    let numbered = "# TYPE a counter\na{veer_envoy=\"2\",veer_pod=\"x.y\"} 2\na{veer_envoy=\"2\"} 3\n";
    assert_eq!(passed(node(Some("2")), text), (numbered.to_owned(), 0));
}

#[test]
fn the_counters_of_openmetrics_get_the_names_that_their_samples_have() {
    let text = "# TYPE a counter\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3\na_other 4\n# TYPE b gauge\nb_total 5\n# EOF\n";
    let expected = "# TYPE a_total counter\na_total{veer_ztunnel=\"7\",x=\"1\"} 2\na_total{veer_ztunnel=\"7\",x=\"2\"} 3\n\
                    # TYPE a_other untyped\na_other{veer_ztunnel=\"7\"} 4\n# TYPE b_total untyped\nb_total{veer_ztunnel=\"7\"} 5\n";
    assert_eq!(passed(Origin::Ztunnel { inode: 7 }, text), (expected.to_owned(), 0));
}

#[test]
fn of_the_nodes_envoy_one_pod_can_be_asked_about() {
    let text = "# TYPE a counter\na{veer_namespace=\"n\",veer_pod=\"p\"} 1\na{veer_namespace=\"n\",veer_pod=\"q\"} 2\n\
                # TYPE b gauge\nb{} 3\n";
    let only = Some(("n".to_owned(), "p".to_owned()));
    let expected = "# TYPE a counter\na{veer_namespace=\"n\",veer_pod=\"p\"} 1\n";
    assert_eq!(passed(Origin::Node { number: None, only }, text), (expected.to_owned(), 0));
}

#[test]
fn what_is_no_sample_is_dropped_and_counted() {
    for wrong in [
        "a",
        "a 1 2 3",
        "a one",
        "a 1 now",
        "{x=\"1\"} 1",
        "1a 1",
        "a-b 1",
        "a{x=1} 1",
        "a{x=\"1} 1",
        "a{x=\"1\"",
        "a{x=\"1\"y=\"2\"} 1",
        "a{x=\"1\",x=\"2\"} 1",
        "a{1x=\"1\"} 1",
        "a{x:y=\"1\"} 1",
        "a{__name__=\"b\"} 1",
        "a{x=\"\\t\"} 1",
        "a{x=\"\u{1}\"} 1",
        "a 1 # {trace_id=\"1\"} 1",
        "a{veer_pod=\"other\"} 1",
        "a{veer_namespace=\"kube-system\"} 1",
        "veer_proxy_up 1",
        "# TYPE a counter gauge",
        "# TYPE veer_proxy_up gauge",
        "# TYPE a b",
    ] {
        assert_eq!(passed(pod(), &format!("{wrong}\n")), (String::new(), 1), "{wrong}");
    }
    let long = format!("a{{x=\"{}\"}} 1\nb 1\n", "y".repeat(MAX_LINE));
    let (out, dropped) = passed(pod(), &long);
    assert_eq!((out.lines().count(), dropped), (2, 1), "{out}");
    // Half of a line is none.
    assert_eq!(passed(pod(), "a 1").1, 1);
}

#[test]
fn a_value_is_written_as_all_read_it() {
    for (value, written) in
        [("-nan", "NaN"), ("1e999", "+Inf"), ("-1e999", "-Inf"), ("infinity", "+Inf"), ("-1.5e3", "-1.5e3")]
    {
        let (out, dropped) = passed(Origin::Ztunnel { inode: 7 }, &format!("a {value}\n"));
        assert_eq!((out.lines().last(), dropped), (Some(&*format!("a{{veer_ztunnel=\"7\"}} {written}")), 0));
    }
}

#[test]
fn a_label_cannot_get_out_of_its_quotes() {
    let sly = "a{x=\"\\\"} 1\\nb{veer_pod=\\\"other\\\"} 2\"} 3\n";
    let (out, dropped) = passed(pod(), sly);
    assert_eq!(dropped, 0);
    assert_eq!(out.lines().count(), 2, "{out}");
    assert!(out.ends_with("\"} 3\n"), "{out}");
}

#[test]
fn a_type_is_told_once_and_before_its_samples() {
    let mut types = Types::default();
    let (of_one, _) = passed(pod(), "a 1\n");
    assert!(types.once(&of_one).starts_with("# TYPE a untyped\na{"));
    let (of_two, _) = passed(pod(), "# TYPE a counter\na 1\n# TYPE b counter\nb 1\n");
    let told = types.once(&of_two);
    assert!(!told.contains("# TYPE a") && told.contains("# TYPE b counter\n"), "{told}");
}

proptest! {
    /// Whatever comes, in whatever pieces: what goes out is samples of the pod, one in each line.
    #[test]
    fn nothing_but_samples_of_the_pod_comes_out(
        lines in prop::collection::vec("(# ?(TYPE|HELP) ?)?[a-c_]{0,3}(\\{[a-z_=\"\\\\,}{ \u{e9}]{0,20})?}? ?[0-9aN.]{0,3}", 0..20),
        piece in 1_usize..9,
    ) {
        let text = lines.join("\n");
        let (mut exposition, mut out) = (Exposition::of(pod()), String::new());
        for piece in text.as_bytes().chunks(piece) {
            exposition.take(piece, &mut out);
        }
        for line in out.lines().filter(|line| !line.starts_with("# TYPE ")) {
            prop_assert!(line.contains("{veer_namespace=\"shop\",veer_pod=\"cart-1\""), "{}", line);
            let again = Sample::parse(line).expect("what is passed on can be read");
            prop_assert_eq!(again.labels.iter().filter(|(label, _)| label.starts_with(OURS)).count(), 2);
        }
    }
}
