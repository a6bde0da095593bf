//! How much memory an input takes: the allocator of everything that links this crate counts.
//!
//! What RocksDB takes for itself in C++ is not counted; it is bounded by its own settings.

use peak_alloc::PeakAlloc;

#[global_allocator]
static COUNTING: PeakAlloc = PeakAlloc;

/// Runs it, and says by how many bytes it raised the peak.
pub fn measured<T>(run: impl FnOnce() -> T) -> (T, usize) {
    COUNTING.reset_peak_usage();
    let before = COUNTING.current_usage();
    let result = run();
    (result, COUNTING.peak_usage().saturating_sub(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_vector_counts_though_it_is_gone() {
        let ((), peak) = measured(|| drop(std::hint::black_box(vec![1_u8; 10_000_000])));
        assert!((10_000_000..12_000_000).contains(&peak), "{peak}");
    }
}
