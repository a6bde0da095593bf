//! What happened, as lines for people, and as one hash for the proof that a seed always makes the same world.

use std::collections::VecDeque;

/// Lines that a failing seed prints.
const KEPT: usize = 200;

#[derive(Debug)]
pub(crate) struct Trace {
    lines: VecDeque<String>,
    hasher: blake3::Hasher,
    whole: bool,
}

impl Trace {
    pub(crate) fn new(whole: bool) -> Self {
        Self { lines: VecDeque::new(), hasher: blake3::Hasher::new(), whole }
    }

    pub(crate) fn line(&mut self, now: u64, actor: &str, what: &str) {
        let line = format!("{:>9.3}  {actor:<14} {what}", now as f64 / 1_000.0);
        self.hasher.update(line.as_bytes());
        self.lines.push_back(line);
        if !self.whole && self.lines.len() > KEPT {
            self.lines.pop_front();
        }
    }

    pub(crate) fn hash(&self) -> String {
        self.hasher.finalize().to_hex()[..16].to_owned()
    }

    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines.into()
    }
}
