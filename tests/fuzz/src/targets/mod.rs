//! What is fuzzed: everything that reads what others wrote.

mod artifacts;
mod events;
mod files;
mod frames;
mod http;
mod patches;
mod peers;
mod records;

use crate::Target;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Every target. The names are those of the folders in the corpus.
pub static ALL: [Target; 14] = [
    // apache-avro, which is asked too, believes lengths up to a mebibyte; `tests/bombs.rs` has the codec's own bound.
    Target {
        name: "events",
        input_bytes_max: 8 * KIB,
        memory_base: 4 * MIB,
        memory_per_byte: 128,
        start: events::start,
    },
    Target {
        name: "from-node",
        input_bytes_max: 16 * KIB,
        memory_base: 64 * KIB,
        memory_per_byte: 128,
        start: frames::from_node,
    },
    Target {
        name: "from-region",
        input_bytes_max: 16 * KIB,
        memory_base: 64 * KIB,
        memory_per_byte: 128,
        start: frames::from_region,
    },
    Target {
        name: "peer-server",
        input_bytes_max: 4 * KIB,
        memory_base: MIB,
        memory_per_byte: 32,
        start: peers::server,
    },
    Target {
        name: "peer-client",
        input_bytes_max: 4 * KIB,
        memory_base: MIB,
        memory_per_byte: 32,
        start: peers::client,
    },
    Target {
        name: "manifest",
        input_bytes_max: 16 * KIB,
        memory_base: 256 * KIB,
        memory_per_byte: 128,
        start: artifacts::manifest,
    },
    Target {
        name: "layout",
        input_bytes_max: 16 * KIB,
        memory_base: 256 * KIB,
        memory_per_byte: 64,
        start: artifacts::layout,
    },
    Target {
        name: "root",
        input_bytes_max: 16 * KIB,
        memory_base: 64 * KIB,
        memory_per_byte: 64,
        start: artifacts::root,
    },
    // The decompressors' windows are at most 8 MiB each, and an assembly holds two chunks.
    Target {
        name: "release",
        input_bytes_max: 64 * KIB,
        memory_base: 24 * MIB,
        memory_per_byte: 1024,
        start: artifacts::release,
    },
    // Windows of 32 MiB for a manifest, 8 MiB for a group; and a section's parts and what it makes.
    Target {
        name: "patch",
        input_bytes_max: 64 * KIB,
        memory_base: 48 * MIB,
        memory_per_byte: 64,
        start: patches::start,
    },
    // What the log, the processors and the bucket's server do meanwhile counts too.
    Target { name: "http", input_bytes_max: 16 * KIB, memory_base: 8 * MIB, memory_per_byte: 256, start: http::start },
    Target {
        name: "files",
        input_bytes_max: 8 * KIB,
        memory_base: 256 * KIB,
        memory_per_byte: 256,
        start: files::files,
    },
    Target {
        name: "credentials",
        input_bytes_max: 8 * KIB,
        memory_base: 64 * KIB,
        memory_per_byte: 32,
        start: files::credentials,
    },
    Target {
        name: "log-records",
        input_bytes_max: 8 * KIB,
        memory_base: 64 * KIB,
        memory_per_byte: 64,
        start: records::start,
    },
];
