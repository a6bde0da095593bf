//! The topics: who writes them, how many partitions they have and how long they are kept.
//!
//! A request topic and the fact topic of its processor have the same number of partitions, and the same key falls on the
//! same number in both.

use std::time::Duration;

/// How long a topic keeps its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    Forever,
    For(Duration),
    /// The newest record of each key, for ever.
    Compacted,
}

/// One line of the topic table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topic {
    /// Without the deployment's prefix.
    pub name: &'static str,
    pub partitions: u32,
    pub retention: Retention,
}

const fn days(n: u64) -> Retention {
    Retention::For(Duration::from_secs(n * 24 * 60 * 60))
}

const fn topic(name: &'static str, partitions: u32, retention: Retention) -> Topic {
    Topic { name, partitions, retention }
}

pub const BUILD_REQUESTS: Topic = topic("build-requests", 4, days(7));
pub const BUILDS: Topic = topic("builds", 4, Retention::Forever);
pub const ARTIFACT_REQUESTS: Topic = topic("artifact-requests", 4, days(7));
pub const ARTIFACTS: Topic = topic("artifacts", 4, Retention::Forever);
pub const GOAL_REQUESTS: Topic = topic("goal-requests", 4, days(7));
pub const GOALS: Topic = topic("goals", 4, Retention::Forever);
pub const FLEET_REPORTS: Topic = topic("fleet-reports", 16, days(7));
pub const FLEET: Topic = topic("fleet", 16, Retention::Forever);
/// The regional key-value store: what each region must run, by `region/service`.
pub const GOAL_STATE: Topic = topic("goal-state", 4, Retention::Compacted);
/// Heartbeats and open claims, read by the queue's leader into its Soft state only.
pub const WORKER_SIGNALS: Topic = topic("worker-signals", 4, Retention::For(Duration::from_secs(6 * 60 * 60)));
/// References to log segments in the bucket.
pub const BUILD_LOGS: Topic = topic("build-logs", 4, days(1));
/// Packs that builds which still run have uploaded: regions copy them ahead. What is lost costs time only.
pub const PACK_HINTS: Topic = topic("pack-hints", 4, days(1));
/// What people ask of single nodes, for their regions to hand on. Nothing changes by it.
pub const NODE_QUERIES: Topic = topic("node-queries", 4, Retention::For(Duration::from_secs(60 * 60)));
/// What the nodes answer.
pub const NODE_ANSWERS: Topic = topic("node-answers", 4, Retention::For(Duration::from_secs(60 * 60)));
/// Records that no processor could take, with where they stood and why.
pub const DEAD_LETTERS: Topic = topic("dead-letters", 1, Retention::Forever);

pub const ALL: [Topic; 15] = [
    BUILD_REQUESTS,
    BUILDS,
    ARTIFACT_REQUESTS,
    ARTIFACTS,
    GOAL_REQUESTS,
    GOALS,
    FLEET_REPORTS,
    FLEET,
    GOAL_STATE,
    WORKER_SIGNALS,
    BUILD_LOGS,
    PACK_HINTS,
    NODE_QUERIES,
    NODE_ANSWERS,
    DEAD_LETTERS,
];

/// The fact topics, which the API streams and anyone may replay.
pub const FACTS: [Topic; 4] = [BUILDS, ARTIFACTS, GOALS, FLEET];

/// The partition of a key: murmur2, positive, modulo the count, as Kafka's Java clients do.
pub fn partition_of(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partitions.max(1)
}

fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const SEED: u32 = 0x9747_b28c;
    // Kafka hashes lengths as 32 bits; a key is never near that.
    let mut hash = SEED ^ (data.len() as u32);
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let tail = words.remainder();
    if !tail.is_empty() {
        let word = tail.iter().rev().fold(0u32, |word, byte| (word << 8) | u32::from(*byte));
        hash = (hash ^ word).wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that Kafka's own `Utils.murmur2` gives (its unit test's table).
    #[test]
    fn murmur2_is_kafkas() {
        let table: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ];
        for (key, hash) in table {
            assert_eq!(murmur2(key) as i32, hash, "{}", String::from_utf8_lossy(key));
        }
    }

    #[test]
    fn processors_have_as_many_fact_as_request_partitions() {
        for (requests, facts) in
            [(BUILD_REQUESTS, BUILDS), (ARTIFACT_REQUESTS, ARTIFACTS), (GOAL_REQUESTS, GOALS), (FLEET_REPORTS, FLEET)]
        {
            assert_eq!(requests.partitions, facts.partitions);
        }
        assert_eq!(WORKER_SIGNALS.partitions, BUILD_REQUESTS.partitions, "signals reach the queue's leader");
    }
}
