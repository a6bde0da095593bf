//! Sets of nodes and the hashes that spread nodes over shards and cohorts.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{NodeId, ServiceName};

/// Slots that a service's nodes are spread over; a fraction of 1/10,000 is one slot.
pub const SLOTS: u32 = 10_000;

/// Where a node stands among a service's slots. Waves take nodes in the order of their slots.
pub fn slot(service: &ServiceName, node: &NodeId) -> u32 {
    (hash(&[service.as_str(), "/", node.as_str()]) % u64::from(SLOTS)) as u32
}

/// The shard of a region that a node belongs to.
pub fn shard_of(node: &NodeId, shards: u32) -> u32 {
    (hash(&[node.as_str()]) % u64::from(shards.max(1))) as u32
}

/// How much `who` is meant for `what`: of several, the one with the most does it, and when that one is gone the next.
pub fn weight(who: &str, what: &str) -> u64 {
    hash(&[who, what])
}

fn hash(parts: &[&str]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part.as_bytes());
    }
    let bytes = hasher.finalize();
    u64::from_le_bytes(*bytes.as_bytes().first_chunk().expect("a BLAKE3 hash has 32 bytes"))
}

/// A sorted set of node numbers. On the wire: LEB128 differences, so a dense set takes a byte a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeSet(Vec<u32>);

impl NodeSet {
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    pub fn contains(&self, number: u32) -> bool {
        self.0.binary_search(&number).is_ok()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len());
        let mut next = 0;
        for number in self.iter() {
            let mut difference = number - next;
            while difference >= 0x80 {
                bytes.push((difference as u8) | 0x80);
                difference >>= 7;
            }
            bytes.push(difference as u8);
            next = number.saturating_add(1);
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut numbers = Vec::with_capacity(bytes.len());
        let mut next: u64 = 0;
        let (mut difference, mut shift) = (0u64, 0u32);
        for byte in bytes {
            if shift > 28 {
                return Err("a node set holds a number above 2^32-1");
            }
            difference |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                let number = next + difference;
                numbers.push(u32::try_from(number).map_err(|_| "a node set holds a number above 2^32-1")?);
                next = number + 1;
                (difference, shift) = (0, 0);
            }
        }
        if shift != 0 { Err("a node set ends within a number") } else { Ok(Self(numbers)) }
    }
}

impl FromIterator<u32> for NodeSet {
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        let mut numbers: Vec<u32> = numbers.into_iter().collect();
        numbers.sort_unstable();
        numbers.dedup();
        Self(numbers)
    }
}

/// Bytes in binary formats, a list of numbers in JSON.
impl Serialize for NodeSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            self.0.serialize(serializer)
        } else {
            apache_avro::serde::bytes::serialize(&self.encode(), serializer)
        }
    }
}

impl<'de> Deserialize<'de> for NodeSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            Ok(Vec::<u32>::deserialize(deserializer)?.into_iter().collect())
        } else {
            let bytes = apache_avro::serde::bytes::deserialize(deserializer)?;
            Self::decode(&bytes).map_err(de::Error::custom)
        }
    }
}

impl apache_avro::AvroSchemaComponent for NodeSet {
    fn get_schema_in_ctxt(
        _: &mut std::collections::HashSet<apache_avro::schema::Name>,
        _: apache_avro::schema::NamespaceRef<'_>,
    ) -> apache_avro::Schema {
        apache_avro::Schema::Bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_sets_round_trip() {
        for numbers in [vec![], vec![0], vec![0, 1, 2, 127, 128, 129, 70_000, u32::MAX], (0..1000).collect()] {
            let set: NodeSet = numbers.into_iter().collect();
            assert_eq!(NodeSet::decode(&set.encode()), Ok(set));
        }
    }

    #[test]
    fn broken_node_sets_are_errors() {
        for bytes in [&[0x80][..], &[0xff; 6], &[0xff, 0xff, 0xff, 0xff, 0x0f, 0x00], &[0xff, 0xff, 0xff, 0xff, 0x7f]] {
            NodeSet::decode(bytes).expect_err("broken");
        }
    }

    #[test]
    fn slots_spread_evenly() {
        let service = "web".parse().expect("valid");
        let below = (0..20_000)
            .map(|n| slot(&service, &format!("node-{n}").parse().expect("valid")))
            .filter(|slot| *slot < SLOTS / 10)
            .count();
        assert!((1_800..2_200).contains(&below), "{below} of 20,000 in a tenth of the slots");
    }
}
