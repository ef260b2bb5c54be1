//! Pollers, for people.

use super::{count, dash, percent, table};
use crate::api::report::PollerReport;

/// `sluice poller show`
pub fn pollers(pollers: &[PollerReport]) -> String {
    let rows = pollers.iter().map(|p| {
        let looked_up = p.exact_hits + p.megaflow_hits + p.upcalls;
        [
            p.core.to_string(),
            count(p.frames),
            if p.batches == 0 { "-".to_owned() } else { per(p.frames, p.batches) },
            percent(p.busy_cycles, p.busy_cycles + p.idle_cycles),
            dash(p.busy_cycles_per_frame.map(|c| format!("{c:.0}"))),
            percent(p.exact_hits, looked_up),
            percent(p.megaflow_hits, looked_up),
            count(p.upcalls),
            p.queues.iter().map(|q| format!("{}:{}", q.port, q.queue)).collect::<Vec<_>>().join(" "),
        ]
    });
    let headings = [
        ">core",
        ">frames",
        ">per batch",
        ">busy",
        ">cycles/frame",
        ">exact",
        ">megaflow",
        ">upcalls",
        "queues",
    ];
    table(headings, rows)
}

fn per(n: u64, of: u64) -> String {
    format!("{:.1}", n as f64 / of as f64)
}

/// `sluice poller show --perf`
pub fn perf(pollers: &[PollerReport]) -> String {
    pollers.iter().map(one).collect::<Vec<_>>().join("\n")
}

fn one(p: &PollerReport) -> String {
    let rate = if p.seconds > 0.0 { p.frames as f64 / p.seconds / 1e6 } else { 0.0 };
    let busy = percent(p.busy_cycles, p.busy_cycles + p.idle_cycles);
    let mut text = format!("poller on core {}, over {:.1} s\n", p.core, p.seconds);
    text += &format!(
        "  frames    {} ({rate:.3} million/s), {} cycles each\n",
        count(p.frames),
        each(p.busy_cycles, p.frames)
    );
    text += &format!("  busy      {busy} of the cycles it did not sleep\n");
    text += &format!("  passes    {} a frame (one more for each tunnel it came out of)\n", passes(p));
    text += &sources(p);
    text += &format!("  checked again after changes: {} flows\n\n", count(p.revalidated));
    text + &stages(p) + "\n" + &sizes(p)
}

/// Who decided the frames.
fn sources(p: &PollerReport) -> String {
    let all = p.exact_hits + p.megaflow_hits + p.upcalls;
    let exact = percent(p.exact_hits, all);
    let megaflow = percent(p.megaflow_hits, all);
    let (upcalls, cost) = (count(p.upcalls), each(p.upcall_cycles, p.upcalls));
    format!(
        "  decided   {exact} by the exact-match cache, {megaflow} by megaflows, {upcalls} frames by upcalls of {cost} cycles\n"
    )
}

fn stages(p: &PollerReport) -> String {
    let all = p.stages.iter().map(|stage| stage.cycles).sum();
    let row = |name: &str, cycles| [name.to_owned(), each(cycles, p.measured_frames), percent(cycles, all)];
    let stages = p.stages.iter().map(|stage| row(&stage.stage, stage.cycles));
    table(["stage", ">cycles/frame", ">share"], stages.chain([row("all", all)]))
}

fn sizes(p: &PollerReport) -> String {
    let all = p.batch_sizes.iter().map(|class| class.batches).sum();
    let ends = p.batch_sizes.iter().skip(1).map(|next| next.frames - 1).map(Some).chain([None]);
    let rows = p.batch_sizes.iter().zip(ends).map(|(class, last)| {
        let sizes = match last {
            Some(last) if last > class.frames => format!("{}-{last}", class.frames),
            _ => class.frames.to_string(),
        };
        [sizes, count(class.batches), percent(class.batches, all)]
    });
    table([">batch of", ">batches", ">share"], rows)
}

fn passes(p: &PollerReport) -> String {
    if p.frames == 0 {
        "-".to_owned()
    } else {
        format!("{:.2}", 1.0 + p.inner_frames as f64 / p.frames as f64)
    }
}

/// `-` if there is nothing to share it among.
fn each(cycles: u64, among: u64) -> String {
    if among == 0 { "-".to_owned() } else { format!("{:.1}", cycles as f64 / among as f64) }
}
