//! How much of its link a node gives to the swarm: a cap for all hours, and others for some hours of the day.
//!
//! `50,08:00-20:00=10` is 50 MiB a second, and 10 from eight in the morning until eight in the evening, UTC. `08:00-20:00=10` is as much as there is but then.

use std::{fmt, str::FromStr};

const MIB: u64 = 1024 * 1024;
/// A pack takes some seconds by the least that may be asked for.
const MIB_MAX: u64 = 1_000_000;
const MINUTES: u32 = 24 * 60;

/// None at all by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caps {
    usual: Option<u64>,
    hours: Vec<Hours>,
}

/// From a minute of the day until another; over midnight if that is earlier.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hours {
    from: u32,
    until: u32,
    mib: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(String);

impl Caps {
    /// Bytes a second, at a time of the day in UTC; None: as many as there are. Of hours that overlap the first count.
    pub fn at(&self, second_of_day: u32) -> Option<u64> {
        let minute = second_of_day / 60 % MINUTES;
        let now = self.hours.iter().find(|hours| hours.contain(minute)).map(|hours| hours.mib);
        Some(now.or(self.usual)? * MIB)
    }
}

impl Hours {
    fn contain(&self, minute: u32) -> bool {
        match self.from < self.until {
            true => (self.from..self.until).contains(&minute),
            false => minute >= self.from || minute < self.until,
        }
    }
}

impl FromStr for Caps {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let mut caps = Self::default();
        for part in text.split(',').map(str::trim) {
            match part.split_once('=') {
                Some((hours, mib)) => caps.hours.push(hours_of(part, hours, mib)?),
                None if caps.usual.is_some() => {
                    return Err(Malformed(format!("`{part}` is a second cap for all hours; write HH:MM-HH:MM={part}")));
                }
                None => caps.usual = Some(mib_of(part)?),
            }
        }
        Ok(caps)
    }
}

fn hours_of(part: &str, hours: &str, mib: &str) -> Result<Hours, Malformed> {
    let read = hours.split_once('-').and_then(|(from, until)| Some((minute_of(from)?, minute_of(until)?)));
    let (from, until) = read.filter(|(from, until)| *from < MINUTES && from != until).ok_or_else(|| {
        Malformed(format!("`{part}` names no hours; write HH:MM-HH:MM=MIB, such as 08:00-20:00=10, in UTC"))
    })?;
    Ok(Hours { from, until, mib: mib_of(mib)? })
}

/// 24:00 is the end of the day.
fn minute_of(text: &str) -> Option<u32> {
    let (hour, minute) = text.trim().split_once(':')?;
    let is_number = |text: &str| text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    let (hour, minute) = (Some(hour).filter(|hour| is_number(hour))?, Some(minute).filter(|minute| is_number(minute))?);
    let (hour, minute): (u32, u32) = (hour.parse().ok()?, minute.parse().ok()?);
    (minute < 60).then_some(hour * 60 + minute).filter(|minute| *minute <= MINUTES)
}

fn mib_of(text: &str) -> Result<u64, Malformed> {
    let mib = text.trim().parse().ok().filter(|mib| (1..=MIB_MAX).contains(mib));
    mib.ok_or_else(|| Malformed(format!("`{}` is no cap; write whole MiB a second, from 1 to {MIB_MAX}", text.trim())))
}

impl fmt::Display for Caps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clock = |minute: u32| format!("{:02}:{:02}", minute / 60, minute % 60);
        let hours =
            self.hours.iter().map(|hours| format!("{}-{}={}", clock(hours.from), clock(hours.until), hours.mib));
        let parts: Vec<String> = self.usual.iter().map(u64::to_string).chain(hours).collect();
        f.write_str(&parts.join(","))
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_holds_in_its_hours() {
        let hour = |hour: u32| hour * 3_600;
        let table = [
            ("50", hour(3), Some(50)),
            ("50,08:00-20:00=10", hour(8), Some(10)),
            ("50,08:00-20:00=10", hour(8) - 1, Some(50)),
            ("50,08:00-20:00=10", hour(20), Some(50)),
            ("08:00-20:00=10", hour(21), None),
            ("22:00-06:00=100, 5", hour(23), Some(100)),
            ("22:00-06:00=100, 5", 0, Some(100)),
            ("22:00-06:00=100, 5", hour(12), Some(5)),
            ("12:00-24:00=7", hour(24) - 1, Some(7)),
            ("08:00-12:00=1,10:00-14:00=2", hour(11), Some(1)),
        ];
        for (text, second, expected) in table {
            let caps: Caps = text.parse().expect(text);
            assert_eq!(caps.at(second), expected.map(|mib: u64| mib * MIB), "{text} at {second} s");
            assert_eq!(caps.to_string().parse(), Ok(caps), "{text}");
        }
        assert_eq!(Caps::default().at(0), None);
    }

    #[test]
    fn what_is_none_is_named() {
        for text in [
            "",
            "0",
            "-1",
            "1.5",
            "5,6",
            "8-20=10",
            "08:00-08:00=1",
            "24:00-25:00=1",
            "08:00=1",
            "08:60-09:00=1",
            "08:00-20:00=",
            "1000001",
        ] {
            let said = text.parse::<Caps>().expect_err(text).to_string();
            assert!(said.contains('`') && said.contains("write"), "{said}");
        }
    }
}
