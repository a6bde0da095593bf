//! How input is broken.

use crate::Random;

/// Mutations of one input at most.
const STACKED_MAX: usize = 5;
/// Longest piece that is inserted, removed or repeated.
const PIECE_BYTES_MAX: usize = 64;

/// Numbers at which programs go wrong: limits, and sizes that nobody has.
const NUMBERS: [i64; 18] = [
    0,
    1,
    -1,
    127,
    128,
    255,
    65_535,
    65_536,
    1 << 20,
    (1 << 20) + 1,
    1 << 23,
    1_000_000_000,
    (1 << 29) - 1,
    1 << 31,
    1 << 32,
    1 << 62,
    i64::MAX,
    i64::MIN,
];

/// A broken copy. `others` are what pieces may be taken from.
pub fn mutate(input: &[u8], others: &[Vec<u8>], tokens: &[&str], random: &mut Random) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(STACKED_MAX) {
        once(&mut bytes, others, tokens, random);
    }
    bytes
}

fn once(bytes: &mut Vec<u8>, others: &[Vec<u8>], tokens: &[&str], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    match random.below(10) {
        0 => change(bytes, at, |byte| byte ^ 1 << random.below(8)),
        1 => change(bytes, at, |_| *random.pick(&[0, 1, 0x7f, 0x80, 0xff, b'"', b'\n', b'/'])),
        2 => change(bytes, at, |byte| byte.wrapping_add(*random.pick(&[1, 0xff, 2, 0xfe]))),
        3 => bytes.truncate(at),
        4 => drop(bytes.drain(piece(bytes, at, random))),
        5 => {
            let repeated = bytes[piece(bytes, at, random)].repeat(1 + random.below(8));
            insert(bytes, at, &repeated);
        }
        6 => {
            let number = number(random);
            if random.one_in(2) {
                insert(bytes, at, &number);
            } else {
                overwrite(bytes, at, &number);
            }
        }
        7 if !tokens.is_empty() => {
            let token = *random.pick(tokens);
            insert(bytes, at, token.as_bytes());
        }
        8 if !others.is_empty() => splice(bytes, at, random.pick::<Vec<u8>>(others), random.draw()),
        _ => {
            let noise = random.below(8);
            insert(bytes, at, &random.bytes(noise));
        }
    }
}

/// An extreme number as some format writes it.
fn number(random: &mut Random) -> Vec<u8> {
    let number = *random.pick(&NUMBERS);
    match random.below(6) {
        0 => varint(((number << 1) ^ (number >> 63)).cast_unsigned()),
        1 => varint(number.cast_unsigned()),
        2 => (number as u32).to_be_bytes().to_vec(),
        3 => (number as u32).to_le_bytes().to_vec(),
        4 => number.to_be_bytes().to_vec(),
        _ => number.to_string().into_bytes(),
    }
}

/// LEB128: what Avro (after zigzag), manifests and layouts write.
pub fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn change(bytes: &mut [u8], at: usize, with: impl FnOnce(u8) -> u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte = with(*byte);
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, piece: &[u8]) {
    bytes.splice(at..at, piece.iter().copied());
}

fn overwrite(bytes: &mut Vec<u8>, at: usize, piece: &[u8]) {
    let end = (at + piece.len()).min(bytes.len());
    bytes.splice(at..end, piece.iter().copied());
}

/// The beginning of one and the end of another.
fn splice(bytes: &mut Vec<u8>, at: usize, other: &[u8], choice: u64) {
    let from = (choice % (other.len() as u64 + 1)) as usize;
    bytes.truncate(at);
    bytes.extend_from_slice(&other[from..]);
}

fn piece(bytes: &[u8], at: usize, random: &mut Random) -> std::ops::Range<usize> {
    at..(at + random.below(PIECE_BYTES_MAX)).min(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutations_differ_repeat_by_seed_and_take_any_input() {
        let others = vec![b"another input".to_vec(), Vec::new()];
        let run = |seed| {
            let mut random = Random::new(seed);
            let input = |random: &mut Random| mutate(b"some input", &others, &["token"], random);
            (0..500).map(|_| input(&mut random)).collect::<Vec<_>>()
        };
        let mutated = run(1);
        assert_eq!(mutated, run(1));
        assert!(mutated.iter().filter(|bytes| bytes.as_slice() != b"some input").count() > 450);
        let mut random = Random::new(2);
        for _ in 0..500 {
            let _ = mutate(b"", &[], &[], &mut random);
        }
    }
}
