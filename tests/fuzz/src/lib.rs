//! Input that lies: everything that reads bytes of others, fed with bytes that nobody meant.
//!
//! ```text
//!            corpus (files, committed) ─┐
//!   golden bytes, generated values ─────┼─▶ pool ──mutate──▶ input ──▶ [Subject::run] ──▶ kind of outcome: new? ─▶ pool
//!                                       │                              │ panic, too much memory, too slow, broken promise
//!                                       └◀──── minimised finding ◀─────┘
//! ```
//!
//! - [`targets`]: what is fuzzed. Each says how valid input is made, and what must hold whatever the input is.
//! - [`hunt`]: the loop. It is guided by the outcomes: an input with an outcome not seen before is kept and mutated further.
//! - [`mutate`]: flips, cuts, splices, and numbers where lengths may stand.
//! - [`memory`]: counts what an input makes the program allocate.
//! - [`corpus`]: the inputs that a test replays for ever. A finding becomes one of them.
//! - [`supervise`]: one process for each target, so that what aborts is a finding too.
//!
//! Everything works on the stable toolchain, without instrumentation: the binaries are those of every other test. What
//! that costs is coverage guidance; generators that know the formats make up for most of it.

pub mod corpus;
pub mod hunt;
pub mod memory;
pub mod mutate;
pub mod random;
pub mod supervise;
pub mod targets;

pub use random::Random;

/// What is fuzzed.
pub trait Subject {
    /// Reads this input. `Ok` is what kind of outcome it was, be it a value or an error: inputs of new kinds are kept.
    /// `Err` is a promise that was broken; so is a panic.
    fn run(&mut self, input: &[u8]) -> Result<String, String>;

    /// An input that is valid, or nearly.
    fn generate(&mut self, random: &mut Random) -> Vec<u8>;

    /// Inputs that lie elsewhere in this repository, such as golden bytes.
    fn golden(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    /// Pieces that are worth inserting.
    fn tokens(&self) -> &'static [&'static str] {
        &[]
    }
}

/// A subject, and the bounds on what one input may cost.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub input_bytes_max: usize,
    /// Bytes that one input may allocate at most: this, and [`Target::memory_per_byte`] for each of its bytes.
    pub memory_base: usize,
    pub memory_per_byte: usize,
    pub start: fn() -> Box<dyn Subject>,
}

impl Target {
    pub fn memory_max(&self, input: &[u8]) -> usize {
        self.memory_base + self.memory_per_byte * input.len()
    }
}

/// The kind of an error: its first words without what differs from input to input, which is quoted, or holds digits.
pub fn kind_of(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let outside = text.split(['"', '`', '\'']).step_by(2);
    let words = outside.flat_map(str::split_whitespace);
    let plain =
        words.filter(|word| word.bytes().all(|byte| byte.is_ascii_alphabetic() || b".,:;()-_/".contains(&byte)));
    plain.take(KIND_WORDS_MAX).collect::<Vec<_>>().join(" ")
}

const KIND_WORDS_MAX: usize = 10;
