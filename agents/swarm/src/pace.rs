//! The least that a source must give: some bytes in every window, so that one that sends a byte a second is given up as soon as
//! one that sends nothing; and all of them in a time that they may take.

use std::{io, time::Duration};

use tokio::time::{Instant, timeout_at};

use crate::{PATIENCE, RATE_MIN, peer::COMING_MAX};

/// What comes is looked at so often.
const WINDOW: Duration = Duration::from_secs(5);
/// At least this must come in each window. Less than the average that [`crate::RATE_MIN`] asks of a whole transfer: one may
/// stumble, none may crawl.
const WINDOW_BYTES_MIN: u64 = 128 * 1024;

/// When a transfer of so many bytes must be over.
pub(crate) fn deadline(bytes: u64) -> Instant {
    Instant::now() + COMING_MAX + PATIENCE + Duration::from_secs(bytes / RATE_MIN)
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Stopped {
    #[error("no more than {bytes} bytes came in {} s", WINDOW.as_secs())]
    Slow { bytes: u64 },
    #[error("slower than {} KiB/s", RATE_MIN / 1024)]
    Late,
    #[error("{0}")]
    Failed(#[from] io::Error),
}

/// Of one transfer.
pub(crate) struct Pace {
    end: Instant,
    window_end: Instant,
    window_bytes: u64,
}

impl Pace {
    /// Of a transfer of so many bytes, which begins.
    pub(crate) fn start(bytes: u64) -> Self {
        Self { end: deadline(bytes), window_end: Instant::now() + WINDOW, window_bytes: 0 }
    }

    /// The source said that it has nothing yet.
    pub(crate) fn rest(&mut self) {
        (self.window_end, self.window_bytes) = (Instant::now() + WINDOW, 0);
    }

    /// Nothing was asked of the source for so long.
    pub(crate) fn paused(&mut self, pause: Duration) {
        self.end += pause;
        self.window_end += pause;
    }

    /// Waits for the next bytes; `count` says how many came.
    pub(crate) async fn next<T>(
        &mut self,
        read: impl Future<Output = io::Result<T>>,
        count: impl FnOnce(&T) -> usize,
    ) -> Result<T, Stopped> {
        tokio::pin!(read);
        loop {
            match timeout_at(self.window_end.min(self.end), &mut read).await {
                Ok(came) => {
                    let came = came?;
                    self.window_bytes += count(&came) as u64;
                    // A source that always has a byte ready never lets the time run out.
                    self.turn()?;
                    return Ok(came);
                }
                Err(_) => self.turn()?,
            }
        }
    }

    /// A window may be over, or all of the time.
    fn turn(&mut self) -> Result<(), Stopped> {
        let now = Instant::now();
        if now >= self.end {
            return Err(Stopped::Late);
        }
        if now < self.window_end {
            return Ok(());
        }
        if self.window_bytes < WINDOW_BYTES_MIN {
            return Err(Stopped::Slow { bytes: self.window_bytes });
        }
        self.rest();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads pieces that come at an even pace until the source is given up, but for two minutes at most.
    async fn given_up_after(piece_bytes: usize, every: Duration) -> Option<Duration> {
        let (begun, mut pace) = (Instant::now(), Pace::start(1 << 30));
        while begun.elapsed() < Duration::from_secs(120) {
            let read = async {
                tokio::time::sleep(every).await;
                Ok(piece_bytes)
            };
            if let Err(Stopped::Slow { .. }) = pace.next(read, |bytes| *bytes).await {
                return Some(begun.elapsed());
            }
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn who_crawls_is_given_up_and_who_stumbles_is_not() {
        let table = [
            (1, Duration::from_secs(1), true),
            (1, Duration::from_millis(1), true),
            (0, Duration::from_secs(1_000), true),
            (64 * 1024, Duration::from_secs(1), false),
            (1024 * 1024, Duration::from_secs(4), false),
            (1024 * 1024, Duration::from_secs(12), true),
        ];
        for (bytes, every, expected) in table {
            let after = given_up_after(bytes, every).await;
            assert_eq!(after.is_some(), expected, "{bytes} bytes every {every:?}: {after:?}");
            assert!(after.is_none_or(|after| after < Duration::from_secs(25)), "{bytes} every {every:?}: {after:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_transfer_ends_and_its_pauses_do_not_count() {
        let bytes = 8 * 1024 * 1024;
        for (pause, is_late) in [(Duration::ZERO, true), (Duration::from_secs(1), false)] {
            let (mut pace, mut result) = (Pace::start(bytes), Ok(0));
            // A hundred seconds of reading: one more than it may take.
            for _ in 0..100 {
                let read = async {
                    tokio::time::sleep(Duration::from_secs(1) - pause / 2).await;
                    Ok(80_000)
                };
                result = result.and(pace.next(read, |bytes| *bytes).await);
                tokio::time::sleep(pause).await;
                pace.paused(pause);
            }
            assert_eq!(matches!(result, Err(Stopped::Late)), is_late, "{result:?}");
        }
    }
}
