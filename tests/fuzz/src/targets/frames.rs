//! The stream between a node and its region, in both directions, cut into pieces as a network would.

use std::{fmt::Debug, marker::PhantomData};

use bytes::BytesMut;
use longshore_schemas::stream::{FromNode, FromRegion};
use longshore_swarm::frames::FrameCodec;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio_util::codec::{Decoder, Encoder};

use crate::{Random, Subject, kind_of};

/// Pieces in which bytes arrive.
const PIECE_BYTES: usize = 100;

struct Frames<M> {
    samples: Vec<Value>,
    message: PhantomData<M>,
}

const ID: &str = "0000000000000000000000000000000000000000000000000000000000000000";

pub(super) fn from_node() -> Box<dyn Subject> {
    let version = json!({ "revision": 3, "step": 1 });
    let samples = vec![
        json!({ "type": "enrol", "token": "ls_node_x", "node": "n-1" }),
        json!({ "type": "hello", "node": "n-1", "credential": "a.b", "zone": "a", "rack": "r", "host": "127.0.0.1",
                "swarm_port": 7000, "agent_version": "0.1.0", "boot": 4, "goals": { "web": version } }),
        json!({ "type": "beat" }),
        json!({ "type": "report", "service": "web", "version": version, "artifact": ID, "status": "Healthy", "port": 80,
                "message": null }),
        json!({ "type": "have", "artifact": ID, "packs": [ID, ID] }),
        json!({ "type": "have_more", "artifact": ID, "packs": [] }),
        json!({ "type": "root_wanted", "artifact": ID }),
        json!({ "type": "sources_wanted", "artifact": ID, "packs": [ID] }),
        json!({ "type": "ticket_done", "artifact": ID, "pack": ID, "ok": true }),
        json!({ "type": "peer_lied", "peer": "n-2", "pack": ID }),
        json!({ "type": "done", "artifact": ID }),
    ];
    Box::new(Frames::<FromNode> { samples, message: PhantomData })
}

pub(super) fn from_region() -> Box<dyn Subject> {
    let run = json!({ "command": ["./web"], "environment": { "A": "b" }, "health": { "http_path": "/" } });
    let target = json!({ "cohort": { "zones": ["a"], "fraction_bp": 500 }, "revision": 2, "artifact": ID, "run": run });
    let samples = vec![
        json!({ "type": "enrolled", "credential": "a.b", "region": "eu" }),
        json!({ "type": "welcome", "region": "eu", "beat_seconds": 10 }),
        json!({ "type": "refused", "reason": "no", "retry_seconds": 3 }),
        json!({ "type": "goal", "region": "eu", "service": "web", "version": { "revision": 2, "step": 1 },
                "targets": [target] }),
        json!({ "type": "root", "artifact": ID, "root": { "artifact": ID, "packs": [[[]]] } }),
        json!({ "type": "sources", "artifact": ID,
                "peers": [{ "node": "n", "address": "127.0.0.1:1", "rack": "r", "packs": [ID] }],
                "tickets": [{ "pack": ID, "bytes": 4194304, "url": "http://127.0.0.1:1/x" }] }),
    ];
    Box::new(Frames::<FromRegion> { samples, message: PhantomData })
}

impl<M: Serialize + DeserializeOwned + PartialEq + Debug> Subject for Frames<M> {
    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let mut codec = FrameCodec::<M, M>::new();
        let (mut arrived, mut kinds) = (BytesMut::new(), String::new());
        for piece in input.chunks(PIECE_BYTES) {
            arrived.extend_from_slice(piece);
            loop {
                match codec.decode(&mut arrived) {
                    Ok(Some(message)) => {
                        let text = format!("{message:?}");
                        kinds.push_str(text.split(['(', ' ']).next().unwrap_or_default());
                        kinds.truncate(80);
                        again(message)?;
                    }
                    Ok(None) => break,
                    // The connection ends with the first error.
                    Err(error) => return Ok(format!("{kinds} {}", kind_of(&error))),
                }
            }
        }
        Ok(format!("{kinds} {}", if arrived.is_empty() { "whole" } else { "cut" }))
    }

    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..=random.below(3) {
            let mut message = random.pick(&self.samples).clone();
            if random.one_in(3) {
                break_value(&mut message, random);
            }
            let json = message.to_string();
            bytes.extend_from_slice(&(json.len() as u32).to_be_bytes());
            bytes.extend_from_slice(json.as_bytes());
        }
        bytes
    }

    fn tokens(&self) -> &'static [&'static str] {
        &[
            "null",
            "\"type\":\"beat\"",
            "[[[[[[[[",
            "{\"a\":",
            "18446744073709551616",
            "-1",
            "1e999",
            "\\ud800",
            "\"../x\"",
        ]
    }
}

/// What was read is written, and read as the same.
fn again<M: Serialize + DeserializeOwned + PartialEq + Debug>(message: M) -> Result<(), String> {
    let mut bytes = BytesMut::new();
    let text = format!("{message:?}");
    let mut codec = FrameCodec::<M, M>::new();
    let copy: M = serde_json::to_value(&message).and_then(serde_json::from_value).map_err(|error| error.to_string())?;
    codec.encode(message, &mut bytes).map_err(|error| format!("what was read cannot be written: {error}"))?;
    match codec.decode(&mut bytes) {
        Ok(Some(read)) if read == copy && bytes.is_empty() => Ok(()),
        other => Err(format!("{text} is written and read as {other:?}")),
    }
}

/// Puts something unexpected in some place.
pub(super) fn break_value(value: &mut Value, random: &mut Random) {
    match value {
        Value::Object(fields) if !fields.is_empty() && !random.one_in(6) => {
            let at = random.below(fields.len());
            if random.one_in(5) {
                let name = fields.keys().nth(at).cloned().unwrap_or_default();
                fields.remove(&name);
            } else if let Some(inner) = fields.values_mut().nth(at) {
                break_value(inner, random);
            }
        }
        Value::Array(items) if !items.is_empty() && !random.one_in(4) => {
            let at = random.below(items.len());
            if random.one_in(4) {
                let copies = vec![items[at].clone(); random.below(100)];
                items.extend(copies);
            } else {
                break_value(&mut items[at], random);
            }
        }
        _ => *value = odd_value(random),
    }
}

fn odd_value(random: &mut Random) -> Value {
    match random.below(16) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(0),
        3 => json!(-1),
        4 => json!(u64::MAX),
        5 => json!(i64::MAX),
        6 => json!(1e300),
        7 => json!(4_294_967_296_u64),
        8 => json!(""),
        9 => json!("../../etc/passwd"),
        10 => json!("\u{0}"),
        11 => json!("x".repeat(random.below(4_000))),
        12 => json!([]),
        13 => json!({}),
        14 => (0..random.below(200)).fold(json!([]), |inner, _| json!([inner])),
        _ => (0..random.below(200)).fold(json!({}), |inner, _| json!({ "a": inner })),
    }
}
