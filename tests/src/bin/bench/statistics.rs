//! Medians and what lies around them. Pure.

use serde::{Deserialize, Serialize};

/// A median and its quartiles.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) p25: f64,
    pub(crate) median: f64,
    pub(crate) p75: f64,
}

impl Spread {
    /// Of any values, in any order; `None` without one.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |part| quantile(&sorted, part);
        Some(Self { p25: at(0.25)?, median: at(0.5)?, p75: at(0.75)? })
    }

    /// One divided by each, the quartiles in their order.
    pub(crate) fn inverse(self) -> Self {
        Self { p25: 1.0 / self.p75, median: 1.0 / self.median, p75: 1.0 / self.p25 }
    }
}

/// Between two values of the sorted list, in proportion; `None` without a value.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "the position lies between 0 and a length, far below 2^52"
)]
pub(crate) fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let position = part * sorted.len().checked_sub(1)? as f64;
    let below = *sorted.get(position.floor() as usize)?;
    let above = *sorted.get(position.ceil() as usize)?;
    Some(below + (above - below) * position.fract())
}

/// The mean; 0 without values.
#[expect(clippy::cast_precision_loss, reason = "a length, far below 2^52")]
pub(crate) fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_neighbours() {
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(spread, Spread { p25: 1.75, median: 2.5, p75: 3.25 });
        let spread = Spread::of(&[5.0, 1.0, 3.0, 2.0, 4.0]).unwrap();
        assert_eq!(spread, Spread { p25: 2.0, median: 3.0, p75: 4.0 });
    }

    #[test]
    fn one_value_is_all_three_and_none_is_none() {
        assert_eq!(Spread::of(&[7.0]).unwrap(), Spread { p25: 7.0, median: 7.0, p75: 7.0 });
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn an_outlier_moves_the_mean_and_not_the_median() {
        let values = [1.0, 1.0, 1.0, 1.0, 996.0];
        assert!((Spread::of(&values).unwrap().median - 1.0).abs() < f64::EPSILON);
        assert!((mean(&values) - 200.0).abs() < 1e-9);
        assert!(mean(&[]).abs() < f64::EPSILON);
    }

    #[test]
    fn an_inverse_keeps_the_quartiles_in_order() {
        let inverse = Spread { p25: 0.5, median: 0.8, p75: 1.0 }.inverse();
        assert_eq!(inverse, Spread { p25: 1.0, median: 1.25, p75: 2.0 });
    }
}
