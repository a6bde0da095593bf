//! Who leads what: the group's members, as the brokers tell it.

use std::collections::BTreeMap;

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::{ASK_TIME, Shared, client::Context, topics::Topic};
use crate::Error;

/// The holder of each partition, as `client-id at host`.
pub(super) async fn owners(shared: &Shared, group: &str, topic: &Topic) -> Result<BTreeMap<u32, String>, Error> {
    let (group, topic) = (format!("{}{group}", shared.config.prefix), topic.kafka.clone());
    // What the brokers answer is librdkafka's memory, and stays where it was read.
    let read = move |asked: &BaseConsumer<Context>| {
        let groups = asked.fetch_group_list(Some(&group), ASK_TIME)?;
        let mut owners = BTreeMap::new();
        for member in groups.groups().iter().flat_map(|group| group.members()) {
            let host = member.client_host().trim_start_matches('/');
            let name = format!("{} at {host}", member.client_id());
            let held = member.assignment().and_then(|bytes| partitions(bytes, &topic)).unwrap_or_default();
            owners.extend(held.into_iter().map(|partition| (partition, name.clone())));
        }
        Ok(owners)
    };
    shared.ask(read).await
}

/// What a member holds of this topic. None if this is no assignment of Kafka's consumer protocol:
/// version, then for each topic its name and its partitions, big-endian.
fn partitions(assignment: &[u8], topic: &str) -> Option<Vec<u32>> {
    let mut bytes = Bytes(assignment);
    let _version = bytes.take(2)?;
    let mut held = Vec::new();
    for _ in 0..bytes.count()? {
        let length = u16::from_be_bytes(bytes.take(2)?.try_into().ok()?);
        let is_it = bytes.take(length.into())? == topic.as_bytes();
        for _ in 0..bytes.count()? {
            let partition = u32::from_be_bytes(bytes.take(4)?.try_into().ok()?);
            if is_it {
                held.push(partition);
            }
        }
    }
    Some(held)
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// How many follow; each takes at least a byte, so a claim that cannot be is none.
    fn count(&mut self) -> Option<usize> {
        let count = u32::from_be_bytes(self.take(4)?.try_into().ok()?) as usize;
        (count <= self.0.len()).then_some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_is_read_and_nonsense_is_none() {
        let mut bytes = vec![0, 1, 0, 0, 0, 2];
        for (topic, held) in [("x.builds", [7u32].as_slice()), ("x.goal-requests", &[0, 3])] {
            bytes.extend(u16::try_from(topic.len()).expect("short").to_be_bytes());
            bytes.extend(topic.as_bytes());
            bytes.extend(u32::try_from(held.len()).expect("few").to_be_bytes());
            bytes.extend(held.iter().flat_map(|partition| partition.to_be_bytes()));
        }
        bytes.extend([0xff; 4]);
        assert_eq!(partitions(&bytes, "x.goal-requests"), Some(vec![0, 3]));
        assert_eq!(partitions(&bytes, "other"), Some(Vec::new()));
        for length in 0..bytes.len() - 4 {
            assert_eq!(partitions(&bytes[..length], "x.goal-requests"), None, "{length}");
        }
        assert_eq!(partitions(&[0, 1, 0xff, 0xff, 0xff, 0xff], "x"), None);
    }
}
