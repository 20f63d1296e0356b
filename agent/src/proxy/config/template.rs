//! A user's resource in Envoy's wire format, with gaps where it is another for each pod. Pure.
//!
//! What Envoy's types are is needed to make one, and not to fill it: descriptors of all of them take megabytes, and are
//! forgotten once the files were read. Fields of maps are in the order of their keys, so the same files are the same bytes.

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, MapKey, ReflectMessage, Value};
use thiserror::Error;

use super::super::driver::ProxiedPod;
use super::super::resources::Direction;
use super::text::{Text, TextError};

/// A resource, or a part of one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Template(Vec<Piece>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Piece {
    /// Bytes that are always the same.
    Fixed(Vec<u8>),
    /// A field that is a text.
    Text(u32, Text),
    /// A field that is a message.
    Message(u32, Template),
}

/// What cannot be made a template of.
#[derive(Debug, Error)]
pub(super) enum TemplateError {
    /// A text in it.
    #[error(transparent)]
    Text(#[from] TextError),
    /// What is in an Any.
    #[error("{0}: {1}")]
    Any(String, prost::DecodeError),
    /// What is in an Any is of no type of Envoy's.
    #[error("{0} is no type of Envoy's that is known here")]
    Unknown(String),
}

const ANY: &str = "google.protobuf.Any";
/// Its two fields.
const TYPE_URL: u32 = 1;
const VALUE: u32 = 2;
/// The wire type of texts and messages: their length comes first.
const WITH_LENGTH: u32 = 2;

impl Template {
    /// Of a message; `pool` has the types of what is in its Anys.
    pub(super) fn of(message: &DynamicMessage, pool: &DescriptorPool) -> Result<Self, TemplateError> {
        if message.descriptor().full_name() == ANY {
            return Self::of_any(message, pool);
        }
        let mut pieces = Vec::new();
        for (field, value) in message.fields() {
            if let Value::Map(map) = value {
                let mut entries: Vec<(&MapKey, &Value)> = map.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                for (key, value) in entries {
                    pieces.push(entry(&field, key, value, pool)?);
                }
            } else if let Value::List(values) = value
                && is_nested(values.first())
            {
                for value in values {
                    pieces.push(piece(&field, value, pool)?);
                }
            } else {
                pieces.push(piece(&field, value, pool)?);
            }
        }
        Ok(Self(pieces))
    }

    fn of_any(message: &DynamicMessage, pool: &DescriptorPool) -> Result<Self, TemplateError> {
        let field = |number| message.get_field_by_number(number).map(std::borrow::Cow::into_owned);
        let Some(Value::String(url)) = field(TYPE_URL) else { return Ok(Self::default()) };
        let Some(Value::Bytes(bytes)) = field(VALUE) else { return Ok(Self::default()) };
        let name = url.rsplit('/').next().unwrap_or(&url);
        let kind = pool.get_message_by_name(name).ok_or_else(|| TemplateError::Unknown(url.clone()))?;
        let inside = DynamicMessage::decode(kind, bytes);
        let inside = inside.map_err(|error| TemplateError::Any(url.clone(), error))?;
        let inside = Self::of(&inside, pool)?;
        Ok(Self(vec![Piece::Text(TYPE_URL, Text::literal(url)), Piece::Message(VALUE, inside)]))
    }

    /// Whether it is the same for all pods.
    pub(super) fn is_plain(&self) -> bool {
        self.0.iter().all(|piece| match piece {
            Piece::Fixed(_) => true,
            Piece::Text(_, text) => text.is_plain(),
            Piece::Message(_, inside) => inside.is_plain(),
        })
    }

    /// The resource of a pod; without one, variables are empty.
    pub(super) fn fill(&self, of: Option<(&ProxiedPod, Direction)>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in &self.0 {
            match piece {
                Piece::Fixed(fixed) => bytes.extend_from_slice(fixed),
                Piece::Text(number, text) => put(&mut bytes, *number, text.fill(of).as_bytes()),
                Piece::Message(number, inside) => put(&mut bytes, *number, &inside.fill(of)),
            }
        }
        bytes
    }
}

const fn is_nested(value: Option<&Value>) -> bool {
    matches!(value, Some(Value::Message(_) | Value::String(_)))
}

fn piece(field: &FieldDescriptor, value: &Value, pool: &DescriptorPool) -> Result<Piece, TemplateError> {
    Ok(if let Value::Message(message) = value {
        Piece::Message(field.number(), Template::of(message, pool)?)
    } else if let Value::String(text) = value {
        Piece::Text(field.number(), Text::parse(text)?)
    } else {
        let mut alone = DynamicMessage::new(field.parent_message().clone());
        alone.set_field(field, value.clone());
        Piece::Fixed(alone.encode_to_vec())
    })
}

/// A map is a list of messages, each with a key and a value.
fn entry(
    field: &FieldDescriptor,
    key: &MapKey,
    value: &Value,
    pool: &DescriptorPool,
) -> Result<Piece, TemplateError> {
    let kind = field.kind();
    let Some(kind) = kind.as_message() else { return Ok(Piece::Fixed(Vec::new())) };
    let key = if let MapKey::String(name) = key {
        // It is a name, and stays what was written.
        Piece::Text(kind.map_entry_key_field().number(), Text::literal(name.clone()))
    } else {
        piece(&kind.map_entry_key_field(), &Value::from(key.clone()), pool)?
    };
    let value = piece(&kind.map_entry_value_field(), value, pool)?;
    Ok(Piece::Message(field.number(), Template(vec![key, value])))
}

/// A field with its length: <https://protobuf.dev/programming-guides/encoding/>.
fn put(bytes: &mut Vec<u8>, number: u32, content: &[u8]) {
    varint(bytes, u64::from((number << 3) | WITH_LENGTH));
    varint(bytes, u64::try_from(content.len()).unwrap_or(u64::MAX));
    bytes.extend_from_slice(content);
}

/// Seven bits in each byte, the lowest first.
fn varint(bytes: &mut Vec<u8>, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            bytes.push(low & 0x7f);
            return;
        }
        bytes.push(low | 0x80);
    }
}
