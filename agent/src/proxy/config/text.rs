//! Texts in users' resources, with what of them is another for each pod: `${POD_NAME}`. Pure.
//!
//! Variables stand for texts inside of a text that was parsed already, so no value can become structure. A `$` is a `$`
//! unless a brace follows; `$${` is the text `${`.

use thiserror::Error;

use super::super::driver::ProxiedPod;
use super::super::resources::{Direction, resource_name};

/// What a text can have in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Variable {
    PodName,
    PodNamespace,
    Direction,
    PodCluster,
}

/// A text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Text(Vec<Part>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Literal(String),
    Variable(Variable),
}

/// What is wrong with a text.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(super) enum TextError {
    /// A name that means nothing.
    #[error("${{{0}}} is not one of {names}; write $${{ for the text ${{", names = names())]
    Unknown(String),
    /// A brace that does not close.
    #[error("${{ without a closing brace; write $${{ for the text ${{")]
    Open,
}

impl Variable {
    const ALL: [Self; 4] = [Self::PodName, Self::PodNamespace, Self::Direction, Self::PodCluster];

    const fn name(self) -> &'static str {
        match self {
            Self::PodName => "POD_NAME",
            Self::PodNamespace => "POD_NAMESPACE",
            Self::Direction => "DIRECTION",
            Self::PodCluster => "POD_CLUSTER",
        }
    }

    fn value(self, pod: &ProxiedPod, way: Direction) -> String {
        match self {
            Self::PodName => pod.name.clone(),
            Self::PodNamespace => pod.namespace.clone(),
            Self::Direction => way.name().to_owned(),
            Self::PodCluster => resource_name(way, pod),
        }
    }
}

fn names() -> String {
    Variable::ALL.map(|variable| format!("${{{}}}", variable.name())).join(", ")
}

impl Text {
    /// From what a user has written.
    pub(super) fn parse(written: &str) -> Result<Self, TextError> {
        let (mut parts, mut literal, mut rest) = (Vec::new(), String::new(), written);
        while let Some((before, behind)) = rest.split_once("${") {
            if let Some(before) = before.strip_suffix('$') {
                literal.push_str(before);
                literal.push_str("${");
                rest = behind;
                continue;
            }
            let (name, behind) = behind.split_once('}').ok_or(TextError::Open)?;
            let variable = Variable::ALL.into_iter().find(|variable| variable.name() == name);
            let variable = variable.ok_or_else(|| TextError::Unknown(name.to_owned()))?;
            literal.push_str(before);
            parts.push(Part::Literal(std::mem::take(&mut literal)));
            parts.push(Part::Variable(variable));
            rest = behind;
        }
        literal.push_str(rest);
        parts.push(Part::Literal(literal));
        Ok(Self(parts))
    }

    /// One that is what was written.
    pub(super) fn literal(text: String) -> Self {
        Self(vec![Part::Literal(text)])
    }

    /// Whether it is the same for all pods.
    pub(super) fn is_plain(&self) -> bool {
        self.0.iter().all(|part| matches!(part, Part::Literal(_)))
    }

    /// What it is for a pod; without one, variables are empty.
    pub(super) fn fill(&self, of: Option<(&ProxiedPod, Direction)>) -> String {
        let fill = |part: &Part| match (part, of) {
            (Part::Literal(text), _) => text.clone(),
            (Part::Variable(variable), Some((pod, way))) => variable.value(pod, way),
            (Part::Variable(_), None) => String::new(),
        };
        self.0.iter().map(fill).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Driver;
    use crate::platform::netns::NetnsId;

    #[test]
    fn variables_are_filled_and_nothing_else_is() {
        let pod = ProxiedPod {
            cookie: 7,
            namespace: "shop".to_owned(),
            name: "cart.v1".to_owned(),
            netns_path: String::new(),
            has_v6: false,
            uid: None,
            container_id: String::new(),
            service_account: None,
            netns: NetnsId { device: 4, inode: 5 },
            driver: Driver::Node,
        };
        for (written, filled) in [
            ("", ""),
            ("a $5 %REQ(x)% $$ {}", "a $5 %REQ(x)% $$ {}"),
            ("${POD_NAMESPACE}/${POD_NAME}-${DIRECTION}", "shop/cart.v1-outbound"),
            ("${POD_CLUSTER}", "outbound|shop/cart.v1|7"),
            ("$${POD_NAME} $$${POD_NAME}", "${POD_NAME} $${POD_NAME}"),
        ] {
            let text = Text::parse(written).unwrap();
            assert_eq!(text.fill(Some((&pod, Direction::Outbound))), filled);
        }
        assert!(Text::parse("$${POD_NAME}").unwrap().is_plain());
        assert!(!Text::parse("${DIRECTION}").unwrap().is_plain());
        assert_eq!(Text::parse("a ${POD").unwrap_err(), TextError::Open);
        assert_eq!(
            Text::parse("${PODNAME}").unwrap_err().to_string(),
            "${PODNAME} is not one of ${POD_NAME}, ${POD_NAMESPACE}, ${DIRECTION}, ${POD_CLUSTER}; write $${ for the text ${"
        );
    }
}
