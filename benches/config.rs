//! What a configuration costs: reading it, checking it, changing it, and compiling it to what pollers read. Its size is that of a
//! compute node's segmentation map: so many segments, each with three VTEPs and a port in it.

use std::fmt::Write;
use std::hint::black_box;

use control::check::warnings;
use control::compile::compile;
use control::config;
use control::edit::{Change, edit};
use control::model::Model;
use criterion::{Criterion, criterion_group, criterion_main};

/// A bridge with so many segments, the first 4,000 of them with a local VLAN.
fn text(segments: usize) -> String {
    let mut text = String::from("[[bridge]]\nname = \"br-int\"\nsegment = [\n");
    for n in 1..=segments {
        let vlan = if n <= 4000 { format!(" vlan = {n},") } else { String::new() };
        let vteps = r#"["192.0.2.2", "192.0.2.3", "192.0.2.4"]"#;
        writeln!(text, "  {{ name = \"net{n}\",{vlan} type = \"vxlan\", id = {n}, vteps = {vteps} }},")
            .unwrap();
    }
    text += "]\nport = [\n  { name = \"vx\", type = \"vxlan\", remote-ip = \"flow\", key = \"flow\", local-ip = \"192.0.2.1\" },\n";
    for n in 1..=segments {
        writeln!(text, "  {{ name = \"vm{n}\", segment = \"net{n}\" }},").unwrap();
    }
    text + "]\n"
}

fn segments(c: &mut Criterion) {
    let mut group = c.benchmark_group("config");
    group.sample_size(10);
    for size in [1_000, 4_000, 16_000] {
        let text = text(size);
        group.bench_function(format!("{size} segments from text to tables"), |b| {
            b.iter(|| {
                let model = Model::new(config::parse(black_box(&text)).unwrap()).unwrap();
                compile(&model)
            });
        });
        let model = Model::new(config::parse(&text).unwrap()).unwrap();
        group.bench_function(format!("{size} segments from model to tables"), |b| b.iter(|| compile(&model)));
        let renumber =
            Change::SetSegment { segment: "net7".to_owned(), settings: vec!["id=99999".to_owned()] };
        group.bench_function(format!("{size} segments, one renumbered in the text"), |b| {
            b.iter(|| edit(&text, model.config(), &renumber).unwrap());
        });
        group.bench_function(format!("{size} segments, all that is odd"), |b| {
            b.iter(|| warnings(model.config()))
        });
    }
}

criterion_group!(benches, segments);
criterion_main!(benches);
