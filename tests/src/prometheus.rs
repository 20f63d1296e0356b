//! Samples in Prometheus' text form, taken apart strictly.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// The labels of a sample.
pub type Labels = BTreeMap<String, String>;

/// A sample.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// Its metric's name, and what of it: `_bucket`, `_sum` …
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Its value.
    pub value: f64,
}

/// Takes a whole text apart.
///
/// # Errors
/// If a line is none of the format's.
pub fn parse(text: &str) -> Result<Vec<Sample>> {
    let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    samples.map(|line| sample(line).with_context(|| format!("not a sample: {line}"))).collect()
}

/// The value of the one sample with exactly this name and these labels; `None` without one.
///
/// # Errors
/// If there are two of them: Prometheus would take neither.
pub fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> Result<Option<f64>> {
    let labels: Labels = labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let mut found = samples.iter().filter(|sample| sample.name == name && sample.labels == labels);
    let first = found.next().map(|sample| sample.value);
    ensure!(found.next().is_none(), "two samples of {name} have the labels {labels:?}");
    Ok(first)
}

/// The sum of a count over all samples that have these labels, whatever they have besides; 0 without any.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count: whole, positive, and below 2^53"
)]
pub fn count(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> u64 {
    let has_all = |sample: &&Sample| {
        labels.iter().all(|(name, value)| sample.labels.get(*name).is_some_and(|has| has == value))
    };
    let found = samples.iter().filter(|sample| sample.name == name).filter(has_all);
    found.map(|sample| sample.value).sum::<f64>() as u64
}

fn sample(line: &str) -> Result<Sample> {
    let Some((name, mut rest)) = line.split_once('{') else {
        let (name, value) = line.split_once(' ').context("no value")?;
        return Ok(Sample { name: name.to_owned(), labels: Labels::new(), value: value.parse()? });
    };
    let mut labels = Labels::new();
    while !rest.starts_with('}') {
        let (label, quoted) = rest.split_once("=\"").context("no label")?;
        let (text, behind) = unquote(quoted)?;
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        ensure!(!label.is_empty() && label.bytes().all(word), "{label:?} is not the name of a label");
        ensure!(labels.insert(label.to_owned(), text).is_none(), "{label} is there twice");
        rest = behind.strip_prefix(',').unwrap_or(behind);
    }
    let value = rest.trim_start_matches('}').trim().parse()?;
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// A value without its quotes, and what is behind it.
fn unquote(quoted: &str) -> Result<(String, &str)> {
    let mut text = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((text, quoted.get(at + 1..).unwrap_or_default())),
            '\\' => match characters.next().context("the line ends with a backslash")?.1 {
                'n' => text.push('\n'),
                escaped => text.push(escaped),
            },
            other => text.push(other),
        }
    }
    anyhow::bail!("a value does not end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_the_sum_of_what_has_these_labels_among_others() {
        let samples =
            parse("a{x=\"1\",y=\"1\"} 2\na{x=\"1\",y=\"2\"} 3\na{x=\"2\"} 10\nb{x=\"1\"} 20\n").unwrap();
        assert_eq!(count(&samples, "a", &[("x", "1")]), 5);
        assert_eq!(count(&samples, "a", &[]), 15);
        assert_eq!(count(&samples, "c", &[]), 0);
    }

    #[test]
    fn samples_are_found_by_all_of_their_labels() {
        let text = "# TYPE a counter\na{x=\"1\",y=\"\\\"}\"} 2\n\na{x=\"1\"} 3\nb 4.5\n";
        let samples = parse(text).unwrap();
        assert_eq!(value(&samples, "a", &[("x", "1"), ("y", "\"}")]).unwrap(), Some(2.0));
        assert_eq!(value(&samples, "a", &[("x", "1")]).unwrap(), Some(3.0));
        assert_eq!(value(&samples, "b", &[]).unwrap(), Some(4.5));
        assert_eq!(value(&samples, "a", &[]).unwrap(), None);
        for wrong in ["a", "a{x=1} 2", "a{x=\"1\",x=\"2\"} 2", "a{x=\"1} 2", "a one"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
