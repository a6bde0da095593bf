//! Memory of the machine that measures.

/// Half of the smallest machine's, with room for what runs.
const WARM_BYTES_MAX: u64 = 6 << 30;
/// Packs, the release, and what is on its way.
const TIMES: u64 = 3;
const PAGE: usize = 4096;

/// Pages of memory that a virtual machine's host has taken back cost a fault of the machine when they are used again, ten times what is written to them.
/// Whoever is measured next must not pay for that, and another not: as much as some content will need is used here first.
pub fn warm(content_bytes: u64) {
    let bytes = TIMES * content_bytes;
    let mut memory = vec![0u8; usize::try_from(bytes.min(WARM_BYTES_MAX)).unwrap_or(0)];
    memory.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    std::hint::black_box(memory);
}
