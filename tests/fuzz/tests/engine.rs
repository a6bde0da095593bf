//! The hunt itself: bugs that are planted are found, made small, and kept.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use longshore_fuzz::{
    Random, Subject, Target,
    hunt::{Hunt, hunt},
};

/// Reads `LEN` and a number, and believes it in three ways.
struct Credulous;

impl Subject for Credulous {
    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let Some((length, rest)) = input.split_first_chunk::<4>() else { return Ok("short".to_owned()) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > 2_000_000 {
            return Ok("too long".to_owned());
        }
        // Memory for what is only claimed.
        let claimed = std::hint::black_box(vec![0_u8; length]);
        if rest.starts_with(b"PA") {
            assert!(rest.get(2).is_none_or(|byte| *byte < 0xc0), "planted");
            return Ok("nearly".to_owned());
        }
        if rest.first() == Some(&b'P') {
            return Ok("half".to_owned());
        }
        drop(claimed);
        if rest.first() == Some(&b'L') { Err("a promise was broken".to_owned()) } else { Ok("fine".to_owned()) }
    }

    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let mut input = vec![0, 0, 0, 1];
        input.extend(random.bytes(6));
        input
    }
}

const CREDULOUS: Target = Target {
    name: "credulous",
    input_bytes_max: 100,
    memory_base: 64 * 1024,
    memory_per_byte: 8,
    start: || Box::new(Credulous),
};

/// One hunt at a time: the allocator counts for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn planted_bugs_are_found_made_small_and_kept() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let options = Hunt {
        seed: 1,
        cases: 200_000,
        time: Duration::from_secs(60),
        corpus: folder.path().to_owned(),
        running: None,
    };
    let hunted = hunt(&CREDULOUS, &options).expect("it hunts");
    let found = |says: &str| {
        let finding = hunted.findings.iter().find(|(_, wrong)| wrong.contains(says));
        let (path, _) = finding.unwrap_or_else(|| panic!("{says}: {hunted:?}"));
        std::fs::read(path).expect("kept")
    };
    let panics = found("panic: planted");
    assert!(panics.len() == 7 && panics[4..6] == *b"PA" && panics[6] >= 0xc0, "nothing but what is needed: {panics:?}");
    assert!(found("memory: ").len() <= 5);
    assert_eq!(found("promise").get(4..), Some(&b"L"[..]));
    assert!(hunted.kinds.len() >= 4, "{hunted:?}");
}

#[test]
fn the_same_seed_is_the_same_hunt() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let run = |seed, at: &str| {
        let corpus = folder.path().join(at);
        let options = Hunt { seed, cases: 20_000, time: Duration::from_secs(60), corpus, running: None };
        let hunted = hunt(&CREDULOUS, &options).expect("it hunts");
        let names: Vec<_> = hunted.findings.iter().map(|(path, _)| path.file_name().map(ToOwned::to_owned)).collect();
        (hunted.cases, hunted.kinds, names)
    };
    assert_eq!(run(5, "one"), run(5, "two"));
}
