//! A port that writes down what passes through another one, for `tcpdump -r` and Wireshark.
//!
//! The file is a classic pcap with nanoseconds (draft-ietf-opsawg-pcap), link type Ethernet. Frames are
//! written as they are here: tags in place, a GSO frame as one, a partial checksum not completed. Each batch
//! costs one clock read, and each frame a copy and the write.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Counters, Offloads, Port, PortError, Readiness, Sent};
use crate::batch::Batch;
use crate::frame::{BIG, Frame, FrameCache};

/// Nanosecond time stamps, little endian.
const MAGIC: u32 = 0xa1b2_3c4d;
/// `LINKTYPE_ETHERNET`.
const ETHERNET: u32 = 1;

/// Which frames to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    /// Those the switch gets.
    Received,
    /// Those the switch sends, once the port took them.
    Sent,
    /// All.
    Both,
}

/// A port and the file beside it. The first error of the file ends the capture, with a warning in the log,
/// and not the port.
pub struct Pcap<W> {
    port: Box<dyn Port>,
    file: Option<W>,
    capture: Capture,
}

impl<W: Write> Pcap<W> {
    /// Writes the file's header and captures from now on. Give it a buffered writer.
    ///
    /// # Errors
    /// If the header cannot be written.
    pub fn new(port: Box<dyn Port>, mut file: W, capture: Capture) -> io::Result<Self> {
        let version = 2u32 | 4 << 16;
        let header = [MAGIC, version, 0, 0, BIG as u32, ETHERNET];
        file.write_all(&header.map(u32::to_le_bytes).concat())?;
        Ok(Pcap { port, file: Some(file), capture })
    }

    fn write(&mut self, records: &[u8]) {
        let result = self.file.as_mut().map_or(Ok(()), |file| file.write_all(records));
        self.check(result);
    }

    fn check(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            tracing::warn!("capture ends: {error}");
            self.file = None;
        }
    }
}

/// Appends one record.
fn record(records: &mut Vec<u8>, time: Duration, frame: &Frame) {
    let len = frame.len() as u32;
    let header = [time.as_secs() as u32, time.subsec_nanos(), len, len];
    records.extend(header.map(u32::to_le_bytes).concat());
    records.extend(frame.bytes());
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl<W: Write + Send> Port for Pcap<W> {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        let before = batch.len();
        self.port.rx(frames, batch)?;
        if self.capture != Capture::Sent && batch.len() > before {
            let (time, mut records) = (now(), Vec::new());
            batch[before..].iter().for_each(|frame| record(&mut records, time, frame));
            self.write(&records);
        }
        Ok(())
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        // Frames that are sent are no longer ours to read: write them down before, and keep those that went.
        let (time, mut records, mut ends) = (now(), Vec::new(), vec![0]);
        if self.capture != Capture::Received {
            for frame in batch.iter() {
                record(&mut records, time, frame);
                ends.push(records.len());
            }
        }
        let before = batch.len();
        let sent = self.port.tx(frames, batch);
        let gone = ends.get(before - batch.len()).copied().unwrap_or(0);
        self.write(&records[..gone]);
        sent
    }

    fn readiness(&self) -> Readiness<'_> {
        self.port.readiness()
    }

    fn arm(&mut self) -> bool {
        self.port.arm()
    }

    fn disarm(&mut self) {
        self.port.disarm();
    }

    fn offloads(&self) -> Offloads {
        self.port.offloads()
    }

    fn counters(&mut self) -> Counters {
        self.port.counters()
    }

    fn close(&mut self, frames: &mut FrameCache) {
        let result = self.file.as_mut().map_or(Ok(()), Write::flush);
        self.check(result);
        self.port.close(frames);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::{Arc, Mutex};

    use super::super::memory::{Peer, pair};
    use super::super::rig::{self, conforms, numbered, pool};
    use super::*;

    /// A file in memory that the test can look into.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Three frames come, five are sent of which four have room.
    fn traffic(capture: Capture) -> Vec<u8> {
        let (pool, mut frames) = pool();
        let (port, mut peer): (_, Peer) = pair(&pool, 4);
        let file = Shared::default();
        let mut port = Pcap::new(Box::new(port), file.clone(), capture).unwrap();
        (0..3).for_each(|n| assert!(peer.inject(&numbered(n, 60))));
        let mut batch = Batch::new();
        port.rx(&mut frames, &mut batch).unwrap();
        batch.extend((3..5).map(|n| frames.from_bytes(&numbered(n, 1514)).unwrap()));
        assert_eq!(port.tx(&mut frames, &mut batch).unwrap().frames, 4);
        batch.drain(..).for_each(|frame| frames.free(frame));
        port.close(&mut frames);
        std::mem::take(&mut file.0.lock().unwrap())
    }

    #[test]
    fn it_conforms() {
        let stock = pool();
        let (port, peer) = pair(&stock.0, 64);
        conforms(Pcap::new(Box::new(port), io::sink(), Capture::Both).unwrap(), peer, stock);
    }

    #[test]
    fn what_passed_is_written_and_nothing_else() {
        let [short, long] = [16 + 60, 16 + 1514];
        assert_eq!(traffic(Capture::Received).len(), 24 + 3 * short);
        assert_eq!(traffic(Capture::Sent).len(), 24 + 3 * short + long);
        let file = traffic(Capture::Both);
        assert_eq!(file.len(), 24 + 6 * short + long);
        assert_eq!(file[..8], [0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0]);
        assert_eq!(file[24 + 8..24 + 16], [60, 0, 0, 0, 60, 0, 0, 0]);
        assert_eq!(file[24 + 16..24 + short], numbered(0, 60));
        assert_eq!(file[file.len() - 1514..], numbered(3, 1514));
    }

    #[test]
    fn tcpdump_reads_it() {
        let path = std::env::temp_dir().join(format!("sluice-{}.pcap", std::process::id()));
        std::fs::write(&path, traffic(Capture::Both)).unwrap();
        let output = Command::new("tcpdump").args(["-t", "-n", "-e", "-r"]).arg(&path).output();
        std::fs::remove_file(&path).unwrap();
        let Ok(output) = output else { return eprintln!("skipped: tcpdump is not installed") };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().filter(|line| line.contains("ethertype Unknown (0x88b5)")).count();
        assert_eq!(lines, 7, "{text}{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn a_full_disk_ends_the_capture_and_not_the_port() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (pool, mut frames) = pool();
        let (port, mut peer) = pair(&pool, 4);
        let mut port = Pcap::new(Box::new(port), Full(24), Capture::Both).unwrap();
        for number in 0..2 {
            assert!(peer.inject(&numbered(number, 60)));
            assert!(rig::receive(&mut port, &mut frames, |frame| frame == numbered(number, 60)).is_some());
        }
        assert!(port.file.is_none());
    }
}
