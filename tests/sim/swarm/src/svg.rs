//! Draws who was complete when.

use std::fmt::Write as _;

use crate::Outcome;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 230.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 56.0;
/// Told apart by those who see few colours, too.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// Completion curves, one a run, with each run's lower bound as a dashed line of its colour. The names come with the runs.
pub fn svg(runs: &[(&str, &Outcome)]) -> String {
    let end = runs.iter().flat_map(|(_, run)| [run.bound_seconds, run.curve.last().map_or(0.0, |last| last.0)]);
    let scale = Scale::new(end.fold(0.0, f64::max));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#333\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
    );
    axes(&mut svg, &scale);
    for (number, (name, run)) in runs.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        bound(&mut svg, &scale, run.bound_seconds, colour);
        curve(&mut svg, &scale, &run.curve, colour);
        legend(&mut svg, number, name, run, colour);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Seconds across, shares of nodes upwards.
struct Scale {
    tick: f64,
    end: f64,
}

impl Scale {
    /// Ends a whole number of ticks behind the last point; a tick is 1, 2 or 5 times a power of ten.
    fn new(last: f64) -> Self {
        let last = if last > 0.0 { last * 1.03 } else { 1.0 };
        let power = 10f64.powf((last / 8.0).log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
        let tick = steps.into_iter().find(|tick| last / tick <= 8.0).unwrap_or(10.0 * power);
        Self { tick, end: (last / tick).ceil() * tick }
    }

    fn x(&self, seconds: f64) -> f64 {
        LEFT + seconds / self.end * (WIDTH - LEFT - RIGHT)
    }

    fn y(share: f64) -> f64 {
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }
}

// Writing to a String does not fail: what `write!` answers is dropped.

fn axes(svg: &mut String, scale: &Scale) {
    let (bottom, right) = (Scale::y(0.0), scale.x(scale.end));
    for fifth in 0..=5 {
        let y = Scale::y(f64::from(fifth) / 5.0);
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}H{right:.1}\" stroke=\"#e4e4e4\"/><text x=\"{:.1}\" y=\"{:.1}\" \
             text-anchor=\"end\">{} %</text>",
            LEFT - 8.0,
            y + 4.0,
            fifth * 20
        );
    }
    let decimals = (-scale.tick.log10().floor()).max(0.0) as usize;
    for number in 0..=(scale.end / scale.tick).round() as u32 {
        let seconds = f64::from(number) * scale.tick;
        let x = scale.x(seconds);
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {TOP}V{bottom:.1}\" stroke=\"#f0f0f0\"/><text x=\"{x:.1}\" y=\"{:.1}\" \
             text-anchor=\"middle\">{seconds:.decimals$}</text>",
            bottom + 18.0
        );
    }
    let (middle_x, middle_y) = ((LEFT + right) / 2.0, Scale::y(0.5));
    let _ = writeln!(svg, "<path d=\"M{LEFT} {TOP}V{bottom:.1}H{right:.1}\" stroke=\"#333\" fill=\"none\"/>");
    let _ = writeln!(
        svg,
        "<text x=\"{middle_x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">seconds since the order</text>",
        bottom + 40.0
    );
    let _ = writeln!(
        svg,
        "<text transform=\"translate(16 {middle_y:.1}) rotate(-90)\" text-anchor=\"middle\">nodes complete</text>"
    );
}

fn bound(svg: &mut String, scale: &Scale, seconds: f64, colour: &str) {
    let (x, bottom) = (scale.x(seconds), Scale::y(0.0));
    let _ = writeln!(
        svg,
        "<path d=\"M{x:.1} {TOP}V{bottom:.1}\" stroke=\"{colour}\" stroke-dasharray=\"5 4\" opacity=\"0.7\"/>"
    );
}

fn curve(svg: &mut String, scale: &Scale, points: &[(f64, f64)], colour: &str) {
    let mut path = format!("M{:.1} {:.1}", scale.x(0.0), Scale::y(0.0));
    for (seconds, share) in points {
        let _ = write!(path, "L{:.1} {:.1}", scale.x(*seconds), Scale::y(*share));
    }
    let _ = writeln!(svg, "<path d=\"{path}\" stroke=\"{colour}\" stroke-width=\"2\" fill=\"none\"/>");
}

fn legend(svg: &mut String, number: usize, name: &str, run: &Outcome, colour: &str) {
    let (x, y) = (WIDTH - RIGHT + 20.0, TOP + 10.0 + 44.0 * number as f64);
    let name = name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let last = run.max_seconds.map_or("nobody complete".to_owned(), |max| format!("last {max:.2} s"));
    let _ = writeln!(
        svg,
        "<path d=\"M{x} {y}h22\" stroke=\"{colour}\" stroke-width=\"2\"/><text x=\"{0}\" y=\"{1}\">{name}</text>\
         <text x=\"{0}\" y=\"{2}\" fill=\"#777\">bound {3:.2} s, {last}</text>",
        x + 30.0,
        y + 4.0,
        y + 20.0,
        run.bound_seconds
    );
}
