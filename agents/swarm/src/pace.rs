//! The least that a source must give: some bytes in every window, so that one that sends a byte a second is given up as soon as
//! one that sends nothing.

use std::{io, time::Duration};

use tokio::time::{Instant, timeout_at};

/// What comes is looked at so often.
const WINDOW: Duration = Duration::from_secs(5);
/// At least this must come in each window. Less than the average that [`crate::RATE_MIN`] asks of a whole transfer: one may
/// stumble, none may crawl.
const WINDOW_BYTES_MIN: u64 = 128 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Stopped {
    #[error("no more than {bytes} bytes came in {} s", WINDOW.as_secs())]
    Slow { bytes: u64 },
    #[error("{0}")]
    Failed(#[from] io::Error),
}

/// Of one transfer.
pub(crate) struct Pace {
    window_end: Instant,
    window_bytes: u64,
}

impl Pace {
    pub(crate) fn start() -> Self {
        Self { window_end: Instant::now() + WINDOW, window_bytes: 0 }
    }

    /// Waits for the next bytes; `count` says how many came.
    pub(crate) async fn next<T>(
        &mut self,
        read: impl Future<Output = io::Result<T>>,
        count: impl FnOnce(&T) -> usize,
    ) -> Result<T, Stopped> {
        tokio::pin!(read);
        loop {
            match timeout_at(self.window_end, &mut read).await {
                Ok(came) => {
                    let came = came?;
                    self.window_bytes += count(&came) as u64;
                    // A source that always has a byte ready never lets the time run out.
                    if Instant::now() >= self.window_end {
                        self.turn()?;
                    }
                    return Ok(came);
                }
                Err(_) => self.turn()?,
            }
        }
    }

    /// A window is over.
    fn turn(&mut self) -> Result<(), Stopped> {
        if self.window_bytes < WINDOW_BYTES_MIN {
            return Err(Stopped::Slow { bytes: self.window_bytes });
        }
        *self = Self::start();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads pieces that come at an even pace until the source is given up, but for two minutes at most.
    async fn given_up_after(piece_bytes: usize, every: Duration) -> Option<Duration> {
        let (begun, mut pace) = (Instant::now(), Pace::start());
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
}
