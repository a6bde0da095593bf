//! Which packs of a replica are looked at, time after time. Pure.

/// Those that are looked at on this visit: at most `at_once`, and every one within as many visits as it takes.
pub fn sample<T>(of: &[T], visit: u64, at_once: usize) -> impl Iterator<Item = &T> {
    let visits = of.len().div_ceil(at_once.max(1)).max(1);
    let first = usize::try_from(visit % visits as u64).unwrap_or(0);
    of.iter().skip(first).step_by(visits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_looked_at_once_within_so_many_visits() {
        for (count, at_once, visits) in [(0, 8, 1), (1, 8, 1), (8, 8, 1), (9, 8, 2), (1_700, 8, 213), (5, 0, 5)] {
            let all: Vec<usize> = (0..count).collect();
            let mut seen = Vec::new();
            for visit in 1_000..1_000 + visits {
                let now: Vec<usize> = sample(&all, visit, at_once).copied().collect();
                assert!(now.len() <= at_once.max(1), "{count} {at_once}: {now:?}");
                seen.extend(now);
            }
            seen.sort_unstable();
            assert_eq!(seen, all, "{count} {at_once}");
        }
    }
}
