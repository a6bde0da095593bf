//! A section as bytes: written from commands, and carried out.

use std::io::{self, Read, Write};

use super::{SECTION_BYTES, delta::Command, near::Window};
use crate::{
    CHUNK_BYTES_MAX,
    wire::{WireError, malformed, read_bounded, read_varint, write_varint},
};

/// No section makes more.
pub(super) const TARGET_BYTES_MAX: usize = SECTION_BYTES + CHUNK_BYTES_MAX;
/// No part of a section is longer.
const PART_BYTES_MAX: usize = 2 * TARGET_BYTES_MAX;

/// Commands, gaps, differences, new bytes.
type Parts = [Vec<u8>; 4];

/// Writes how the target, which is so many chunks, is made of the window.
pub(super) fn write(
    out: &mut impl Write,
    chunks: usize,
    window: &Window,
    target: &[u8],
    commands: &[Command],
) -> io::Result<()> {
    let mut parts = parts(window, target, commands)?;
    if parts.iter().any(|part| part.len() > PART_BYTES_MAX) {
        // Only nonsense needs so many commands; then nothing of it is copied.
        let all_new = Command { from: 0, copied: 0, new: target.len() };
        parts = self::parts(window, target, &[all_new])?;
    }
    write_varint(out, chunks as u64)?;
    parts.iter().try_for_each(|part| write_varint(out, part.len() as u64))?;
    parts.iter().try_for_each(|part| out.write_all(part))
}

fn parts(window: &Window, target: &[u8], commands: &[Command]) -> io::Result<Parts> {
    let [mut orders, mut gaps, mut differences, mut fresh] = Parts::default();
    let (mut rest, mut end, mut gap) = (target, 0, 0);
    for command in commands {
        let (mut from, mut copied) = (command.from, command.copied);
        loop {
            // A window's parts lie apart, and so does what is copied of them.
            let (place, together) = if copied > 0 { window.place(from) } else { (end, 0) };
            let now = copied.min(together);
            let last = now == copied;
            write_varint(&mut orders, now as u64)?;
            write_varint(&mut orders, if last { command.new as u64 } else { 0 })?;
            write_varint(&mut orders, zigzag(place.wrapping_sub(end).cast_signed()))?;
            let (made, later) = rest.split_at(now);
            for (old, new) in window.bytes[from..].iter().zip(made) {
                if old == new {
                    gap += 1;
                } else {
                    write_varint(&mut gaps, gap)?;
                    differences.push(new.wrapping_sub(*old));
                    gap = 0;
                }
            }
            (rest, end, from, copied) = (later, place + now as u64, from + now, copied - now);
            if last {
                break;
            }
        }
        let (new, later) = rest.split_at(command.new);
        fresh.extend_from_slice(new);
        rest = later;
    }
    Ok([orders, gaps, differences, fresh])
}

fn zigzag(distance: i64) -> u64 {
    ((distance << 1) ^ (distance >> 63)).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// A section that was read, and not yet carried out.
pub(super) struct Section {
    pub(super) chunks: usize,
    parts: Parts,
}

impl Section {
    pub(super) fn read(from: &mut impl Read, chunks_left: usize) -> Result<Self, WireError> {
        let chunks = read_bounded(from, chunks_left as u64, "the number of a section's chunks")?;
        if chunks == 0 {
            return malformed("a section makes no chunk");
        }
        let mut lengths = [0; 4];
        for length in &mut lengths {
            *length = read_bounded(from, PART_BYTES_MAX as u64, "the length of a section's part")?;
        }
        let mut parts = Parts::default();
        for (part, length) in parts.iter_mut().zip(lengths) {
            from.take(length).read_to_end(part)?;
            if part.len() as u64 != length {
                return malformed("it ends too early");
            }
        }
        Ok(Self { chunks: usize::try_from(chunks).expect("no more than are left"), parts })
    }

    /// Fills the target. `read` fills a buffer with what is gone, from a place that may lie anywhere.
    pub(super) fn carry_out(
        &self,
        target: &mut [u8],
        mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<(), WireError> {
        let [orders, gaps, differences, fresh] = &self.parts;
        let (mut orders, mut fresh) = (&orders[..], &fresh[..]);
        let mut changes = Changes { gaps, differences, until: None };
        changes.advance()?;
        let (mut rest, mut end) = (target, 0_u64);
        while !rest.is_empty() {
            let copied = bounded(&mut orders, rest.len())?;
            let new = bounded(&mut orders, rest.len() - copied)?;
            let place = end.checked_add_signed(unzigzag(read_varint(&mut orders)?));
            let Some(place) = place.filter(|_| copied + new > 0) else {
                return malformed("a command makes nothing, or of nothing");
            };
            let (made, later) = rest.split_at_mut(copied);
            read(place, made)?;
            changes.apply(made)?;
            end = place.saturating_add(copied as u64);
            let Some((now, after)) = fresh.split_at_checked(new) else {
                return malformed("it has too few new bytes");
            };
            let (made, later) = later.split_at_mut(new);
            made.copy_from_slice(now);
            (rest, fresh) = (later, after);
        }
        if changes.until.is_some() || !orders.is_empty() || !fresh.is_empty() {
            return malformed("a section has more than it needs");
        }
        Ok(())
    }
}

fn bounded(from: &mut &[u8], max: usize) -> Result<usize, WireError> {
    let value = read_bounded(from, max as u64, "what a command makes")?;
    Ok(usize::try_from(value).unwrap_or(max))
}

/// Differences as they come, in what is copied.
struct Changes<'a> {
    gaps: &'a [u8],
    differences: &'a [u8],
    /// Copied bytes before the next one.
    until: Option<u64>,
}

impl Changes<'_> {
    fn advance(&mut self) -> Result<(), WireError> {
        self.until = if self.gaps.is_empty() { None } else { Some(read_varint(&mut self.gaps)?) };
        match self.until {
            None if !self.differences.is_empty() => malformed("a difference has no place"),
            _ => Ok(()),
        }
    }

    fn apply(&mut self, mut made: &mut [u8]) -> Result<(), WireError> {
        while let Some(until) = self.until {
            let within = usize::try_from(until).ok().filter(|until| *until < made.len());
            let Some(within) = within else {
                self.until = Some(until - made.len() as u64);
                return Ok(());
            };
            let Some((difference, others)) = self.differences.split_first() else {
                return malformed("it has too few differences");
            };
            made[within] = made[within].wrapping_add(*difference);
            (self.differences, made) = (others, &mut made[within + 1..]);
            self.advance()?;
        }
        Ok(())
    }
}
