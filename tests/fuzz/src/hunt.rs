//! The hunt through one target, in this process.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{Random, Subject, Target, corpus, kind_of, memory::measured, mutate::mutate};

/// An input that takes longer, as often as this says, is a finding.
const CASE_MAX: Duration = Duration::from_secs(2);
/// How often an input must take too much time or memory, in a row: both are counted for the whole process, and other
/// threads and other processes take some now and then.
const TOO_MUCH_TIMES: u32 = 3;
/// An input that takes longer ends the process: [`crate::supervise`] then finds it in [`Hunt::running`].
const HANG: Duration = Duration::from_secs(60);
/// How long a finding is made smaller.
const MINIMISING: Duration = Duration::from_secs(10);
/// Inputs that are kept because their outcome was new.
const POOL_MAX: usize = 10_000;
/// Findings of one hunt: further ones are mostly the same.
const FINDINGS_MAX: usize = 10;

/// How long to hunt, and with which seed. It ends with whichever bound comes first.
#[derive(Debug, Clone)]
pub struct Hunt {
    pub seed: u64,
    pub cases: u64,
    pub time: Duration,
    /// Where inputs lie, and findings are put.
    pub corpus: PathBuf,
    /// The input that runs is written here first, so that it is known if the process dies of it.
    pub running: Option<PathBuf>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Hunted {
    pub cases: u64,
    /// Different outcomes, and how many inputs had each.
    pub kinds: BTreeMap<String, u64>,
    /// Most memory that one input took, and how large that input was.
    pub memory_max: (usize, usize),
    /// Corpus files of the findings, with what is wrong.
    pub findings: Vec<(PathBuf, String)>,
}

/// Hunts.
pub fn hunt(target: &Target, options: &Hunt) -> Result<Hunted> {
    let mut subject = (target.start)();
    let tokens = subject.tokens();
    let mut random = Random::new(options.seed ^ fold(target.name));
    let mut guard = Guard::new(target, options.running.as_deref())?;
    let mut pool: Vec<Vec<u8>> = subject.golden();
    pool.extend(corpus::load(&options.corpus, target.name)?.into_iter().map(|(_, input)| input));
    let known = pool.clone();
    let mut hunted = Hunted::default();
    let mut broken = HashSet::new();
    let begun = Instant::now();
    for case in 0..options.cases {
        if begun.elapsed() >= options.time || hunted.findings.len() >= FINDINGS_MAX {
            break;
        }
        let mut input = match known.get(case as usize) {
            Some(input) => input.clone(),
            None => next(&mut *subject, &pool, tokens, &mut random),
        };
        input.truncate(target.input_bytes_max);
        hunted.cases += 1;
        let (result, memory) = guard.run(&mut *subject, &input);
        if memory > hunted.memory_max.0 {
            hunted.memory_max = (memory, input.len());
        }
        match result {
            Ok(kind) => {
                let seen = hunted.kinds.entry(kind).or_insert(0);
                *seen += 1;
                if *seen == 1 && pool.len() < POOL_MAX {
                    pool.push(input);
                }
            }
            Err(wrong) if broken.insert(kind_of(&wrong)) => {
                let smallest = minimise(&mut guard, &mut *subject, input, &kind_of(&wrong));
                let path = corpus::keep(&options.corpus, target.name, &smallest)?;
                hunted.findings.push((path, wrong));
                subject = (target.start)();
            }
            Err(_) => {}
        }
    }
    Ok(hunted)
}

/// Runs one input and answers what is wrong with the outcome.
pub fn replay(target: &Target, subject: &mut dyn Subject, input: &[u8]) -> Result<(), String> {
    let mut guard = Guard::new(target, None).map_err(|error| error.to_string())?;
    guard.run(subject, input).0.map(drop)
}

fn next(subject: &mut dyn Subject, pool: &[Vec<u8>], tokens: &[&str], random: &mut Random) -> Vec<u8> {
    match random.below(8) {
        0 => subject.generate(random),
        1..=3 => {
            let valid = subject.generate(random);
            mutate(&valid, pool, tokens, random)
        }
        _ if pool.is_empty() => random.bytes(64),
        _ => {
            let input = random.pick(pool).clone();
            mutate(&input, pool, tokens, random)
        }
    }
}

fn fold(name: &str) -> u64 {
    u64::from_le_bytes(*blake3::hash(name.as_bytes()).as_bytes().first_chunk().expect("a hash has 32 bytes"))
}

/// Watches each run: panics, memory, time.
struct Guard {
    target: Target,
    running: Option<File>,
    /// When the present run began, in milliseconds from `epoch`, or 0.
    since: Arc<AtomicU64>,
    epoch: Instant,
}

impl Guard {
    fn new(target: &Target, running: Option<&Path>) -> Result<Self> {
        let running = running.map(File::create).transpose()?;
        let (since, epoch) = (Arc::new(AtomicU64::new(0)), Instant::now());
        let watched = Arc::downgrade(&since);
        std::thread::spawn(move || {
            while let Some(since) = watched.upgrade() {
                let began = since.load(Ordering::Relaxed);
                if began > 0 && epoch.elapsed() > Duration::from_millis(began) + HANG {
                    std::process::abort();
                }
                drop(since);
                std::thread::sleep(Duration::from_millis(250));
            }
        });
        Ok(Self { target: *target, running, since, epoch })
    }

    /// The outcome, and the memory that it took.
    fn run(&mut self, subject: &mut dyn Subject, input: &[u8]) -> (Result<String, String>, usize) {
        if let Some(running) = &self.running {
            // That it cannot be written is no finding; a run that dies of the input is one without it.
            let _ = running.set_len(input.len() as u64).and_then(|()| running.write_all_at(input, 0));
        }
        let mut too_much = 0;
        loop {
            let began = Instant::now();
            self.since.store(1 + self.epoch.elapsed().as_millis() as u64, Ordering::Relaxed);
            let (result, memory) = measured(|| catch_unwind(AssertUnwindSafe(|| subject.run(input))));
            self.since.store(0, Ordering::Relaxed);
            let result = result.unwrap_or_else(|panic| Err(format!("panic: {}", text_of(&*panic))));
            if result.is_err() {
                return (result, memory);
            }
            let (bound, took) = (self.target.memory_max(input), began.elapsed());
            let wrong = if memory > bound {
                format!("memory: {memory} bytes for {} of input, more than {bound}", input.len())
            } else if took >= CASE_MAX {
                format!("time: {took:?}, more than {CASE_MAX:?}")
            } else {
                return (result, memory);
            };
            too_much += 1;
            if too_much == TOO_MUCH_TIMES {
                return (Err(wrong), memory);
            }
        }
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("without a text").to_owned()
}

/// The smallest input found that is wrong in the same way.
fn minimise(guard: &mut Guard, subject: &mut dyn Subject, mut input: Vec<u8>, kind: &str) -> Vec<u8> {
    let until = Instant::now() + MINIMISING;
    let mut piece = input.len() / 2;
    while piece > 0 && Instant::now() < until {
        let mut at = 0;
        while at < input.len() && Instant::now() < until {
            let mut shorter = input.clone();
            shorter.drain(at..(at + piece).min(input.len()));
            match guard.run(subject, &shorter).0 {
                Err(wrong) if kind_of(&wrong) == kind => input = shorter,
                _ => at += piece,
            }
        }
        piece /= 2;
    }
    input
}
