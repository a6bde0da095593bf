//! Bytes per second: who moves some is told when the next may move.

use crate::Time;

/// A rest is made up for by no more than this.
const BURST: Time = Time::from_millis(200);
const NANOS: u128 = 1_000_000_000;

#[derive(Debug, Clone)]
pub struct Rate {
    bytes_per_second: u64,
    free_at: Time,
}

impl Rate {
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), free_at: Time::ZERO }
    }

    /// Takes another rate from now on.
    pub fn set(&mut self, bytes_per_second: u64) {
        self.bytes_per_second = bytes_per_second.max(1);
    }

    /// When the next transfer may begin. What is taken before is not too early by more than one transfer.
    pub fn free_at(&self) -> Time {
        self.free_at
    }

    pub fn take(&mut self, bytes: u64, now: Time) {
        self.free_at = self.free_at.max(now.saturating_sub(BURST)).saturating_add(self.time_of(bytes));
    }

    /// These bytes were taken and not moved.
    pub fn give_back(&mut self, bytes: u64) {
        self.free_at = self.free_at.saturating_sub(self.time_of(bytes));
    }

    fn time_of(&self, bytes: u64) -> Time {
        let nanos = u128::from(bytes) * NANOS / u128::from(self.bytes_per_second);
        Time::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_moved_in_a_second_is_the_rate_and_little_more() {
        for (rate, piece) in [(1 << 20, 64 * 1024), (10 << 20, 4 << 20), (1, 1)] {
            let (mut meter, mut now, mut moved) = (Rate::new(rate), Time::from_secs(100), 0);
            let end = now + Time::from_secs(60);
            while now < end {
                meter.take(piece, now);
                moved += piece;
                now = now.max(meter.free_at());
            }
            let allowed = rate * 60 + rate / 5 + piece;
            assert!((rate * 60..=allowed).contains(&moved), "{moved} bytes at {rate} a second");
        }
    }
}
