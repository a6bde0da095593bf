//! The values of flags that are more than a word.

use std::collections::BTreeSet;

use longshore_schemas::{
    RegionName, Timestamp,
    events::Wave,
    http::{JobStatus, rfc3339},
};

const TIME_SECONDS_MAX: u32 = 24 * 60 * 60;

/// `KEY=VALUE`
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".to_owned()),
    }
}

/// `90`, `90s`, `15m`, `2h`
pub(crate) fn seconds(text: &str) -> Result<u32, String> {
    let (number, unit) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3_600),
        _ => (text, 1),
    };
    let seconds = number.parse::<u32>().ok().and_then(|number| number.checked_mul(unit));
    let seconds = seconds.filter(|seconds| (1..=TIME_SECONDS_MAX).contains(seconds));
    seconds.ok_or_else(|| "give a time of 1s to 24h, such as 90s, 15m or 2h".to_owned())
}

/// Where a stream of records begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum From {
    /// `beginning`, `end`, or the next offset of each partition.
    Place(String),
    At(Timestamp),
    /// So long ago.
    Ago(std::time::Duration),
}

pub(super) fn from(text: &str) -> Result<From, String> {
    let is_place = |entry: &str| {
        let offset = entry.rsplit_once(':').and_then(|(_, offset)| offset.parse::<u64>().ok());
        (entry.starts_with('p') || entry.contains('/')) && offset.is_some()
    };
    if matches!(text, "beginning" | "end") || text.split(',').all(is_place) {
        return Ok(From::Place(text.to_owned()));
    }
    if let Ok(at) = rfc3339::deserialize(serde_json::Value::from(text)) {
        return Ok(From::At(at));
    }
    let unit = [('s', 1), ('m', 60), ('h', 3_600), ('d', 86_400)].into_iter().find(|(unit, _)| text.ends_with(*unit));
    let ago = unit.and_then(|(unit, seconds)| text.trim_end_matches(unit).parse::<u32>().ok().map(|n| (n, seconds)));
    let ago = ago.map(|(number, seconds)| From::Ago(std::time::Duration::from_secs(u64::from(number) * seconds)));
    ago.ok_or_else(|| {
        "give beginning, end, a time such as 2026-11-25T01:00:00Z, a time ago such as 10m or 2d, or a place such as p0:17"
            .to_owned()
    })
}

/// Percent, as basis points.
pub(super) fn basis_points(text: &str) -> Result<u32, String> {
    let percent: f64 = text.trim_end_matches('%').parse().unwrap_or(f64::NAN);
    if (0.0..=100.0).contains(&percent) {
        Ok((percent * 100.0).round() as u32)
    } else {
        Err("give 0 to 100 percent, such as 2.5".to_owned())
    }
}

pub(super) fn status(text: &str) -> Result<JobStatus, String> {
    serde_json::from_value(text.into()).map_err(|_| "it is queued, running, succeeded, failed or canceled".to_owned())
}

/// `eu,us+ap`: a wave for eu, then one for us and ap.
pub(crate) fn waves(text: &str, bake_seconds: u32) -> Result<Vec<Wave>, String> {
    let wave = |names: &str| -> Result<Wave, String> {
        let regions = names.split('+').map(|name| name.trim().parse::<RegionName>()).collect::<Result<_, _>>();
        let regions = regions.map_err(|error| format!("--waves: {error}"))?;
        Ok(Wave { regions, zones: Vec::new(), fraction_bp: 10_000, bake_seconds })
    };
    let waves: Vec<Wave> = text.split(',').map(wave).collect::<Result<_, _>>()?;
    let mut seen = BTreeSet::new();
    match waves.iter().flat_map(|wave| &wave.regions).find(|region| !seen.insert(*region)) {
        Some(twice) => Err(format!("--waves: {twice} is in it twice; a wave takes all nodes of its regions")),
        None => Ok(waves),
    }
}

/// Splits as a shell would, of which only quotes and backslashes are known.
pub(crate) fn split_command(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => {
                word.get_or_insert_default().push(chars.next().ok_or("it ends with a backslash")?);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    words.extend(word);
    if words.is_empty() { Err("it is empty".to_owned()) } else { Ok(words) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_shares_have_units() {
        let times =
            [("90", Some(90)), ("90s", Some(90)), ("15m", Some(900)), ("2h", Some(7_200)), ("24h", Some(86_400))];
        for (text, expected) in
            times.into_iter().chain([("25h", None), ("0", None), ("", None), ("m", None), ("-1", None)])
        {
            assert_eq!(seconds(text).ok(), expected, "{text}");
        }
        let shares =
            [("0", Some(0)), ("2.5", Some(250)), ("5%", Some(500)), ("100", Some(10_000)), ("101", None), ("x", None)];
        for (text, expected) in shares {
            assert_eq!(basis_points(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn commands_split_as_in_a_shell() {
        let table: [(&str, Option<&[&str]>); 7] = [
            ("./web --port 1", Some(&["./web", "--port", "1"])),
            ("sh -c 'echo \"hi there\"'", Some(&["sh", "-c", "echo \"hi there\""])),
            (r#"a "b \" c" d\ e ''"#, Some(&["a", "b \" c", "d e", ""])),
            ("'open", None),
            ("a\\", None),
            ("  ", None),
            ("", None),
        ];
        for (text, expected) in table {
            let words = split_command(text).ok();
            assert_eq!(
                words.as_deref(),
                expected.map(|w| w.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>()).as_deref(),
                "{text}"
            );
        }
    }

    #[test]
    fn waves_are_regions_in_order() {
        let waves = waves("eu,us+ap", 5).expect("valid");
        let names: Vec<Vec<_>> =
            waves.iter().map(|wave| wave.regions.iter().map(RegionName::as_str).collect()).collect();
        assert_eq!(names, [vec!["eu"], vec!["us", "ap"]]);
        super::waves("eu,,us", 0).expect_err("an empty name");
        super::waves("eu,us+eu", 0).expect_err("a region of two waves");
    }
}
