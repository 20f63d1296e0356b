use super::*;

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn the_families_are_those_that_istio_init_captures() {
    use Family::{V4, V6};
    for (own, dual_stack, expected) in [
        (vec!["127.0.0.1", "10.0.0.5"], false, vec![V4]),
        (vec!["127.0.0.1", "::1", "10.0.0.5", "fd00::5"], false, vec![V4]),
        (vec!["127.0.0.1", "::1", "10.0.0.5", "fd00::5"], true, vec![V4, V6]),
        (vec!["127.0.0.1", "::1", "fd00::5", "fe80::5", "::6"], false, vec![V6]),
        (vec!["127.0.0.1", "169.254.1.1", "fd00::5"], false, vec![V6]),
        (vec!["127.0.0.1", "::1", "10.0.0.5", "fe80::5", "::6"], true, vec![V4]),
        (vec!["127.0.0.1", "::1"], true, vec![]),
    ] {
        assert_eq!(families(&addresses(&own), dual_stack), expected, "{own:?} {dual_stack}");
    }
}

#[test]
fn the_proxy_tries_what_istio_validation_tries() {
    let trial = Trial::of(Family::V4, true);
    assert_eq!(trial.source, Some("127.0.0.1".parse().unwrap()));
    assert_eq!((trial.destination, trial.port), ("127.0.0.6:15002".parse().unwrap(), 15006));
    assert_eq!(Trial::of(Family::V6, true).destination, "[::6]:15002".parse().unwrap());
}

#[test]
fn only_the_right_listener_with_the_right_original_destination_is_redirection() {
    let trial = Trial::of(Family::V4, false);
    let arrived = |port, original: Result<&str, &str>| Observation::Arrived {
        port,
        original: original.map(|text| text.parse().unwrap()).map_err(str::to_owned),
    };
    assert_eq!(trial.judge(&arrived(15001, Ok("192.0.2.1:15002"))), Outcome::Redirected);
    for observation in [
        arrived(15001, Ok("127.0.0.1:15001")),
        arrived(15001, Err("ENOENT")),
        arrived(15006, Ok("192.0.2.1:15002")),
        Observation::WentElsewhere,
        Observation::Failed("ECONNREFUSED".to_owned()),
        Observation::Silence,
    ] {
        assert!(matches!(trial.judge(&observation), Outcome::Missing(_)), "{observation:?}");
    }
    let taken = Observation::PortTaken { port: 15001, problem: "in use".to_owned() };
    assert!(matches!(trial.judge(&taken), Outcome::Unknown(_)));
}
