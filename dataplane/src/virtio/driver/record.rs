//! What a driver remembers of the chains that are with the device: in memory of its own, where no device writes.

use super::{Access, Buffer, Full, Token};

/// A chain with the device.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Chain {
    /// Descriptors of the ring; 0 if the token is free.
    pub(super) descriptors: u16,
    /// The last of them (split rings).
    pub(super) tail: u16,
    /// Bytes that the device may write.
    pub(super) writable: u32,
}

/// All of them, by token.
#[derive(Debug)]
pub(super) struct Record(Vec<Chain>);

impl Record {
    pub(super) fn new(size: u16) -> Record {
        Record(vec![Chain::default(); usize::from(size)])
    }

    #[inline]
    pub(super) fn put(&mut self, token: u16, chain: Chain) {
        let before = std::mem::replace(&mut self.0[usize::from(token)], chain);
        assert_eq!(before.descriptors, 0, "chain {token} is with the device already");
    }

    /// The device gave it back.
    #[inline]
    pub(super) fn take(&mut self, id: u32) -> (Token, Chain) {
        let chain = self.0.get_mut(id as usize).map(std::mem::take).unwrap_or_default();
        assert_ne!(chain.descriptors, 0, "the device gave back chain {id}, which it does not have");
        (Token(id as u16), chain)
    }

    /// Descriptors of a chain with the device.
    pub(super) fn descriptors(&self, token: u16) -> u16 {
        let count = self.0[usize::from(token)].descriptors;
        assert_ne!(count, 0, "the device gave back chain {token}, which it does not have");
        count
    }

    pub(super) fn clear(&mut self) {
        self.0.fill(Chain::default());
    }
}

/// Bytes of the chain that the device may write.
#[inline]
pub(super) fn writable(chain: &[Buffer]) -> u32 {
    chain.iter().filter(|buffer| buffer.access == Access::Write).map(|buffer| buffer.len).sum()
}

/// Is there room for a chain of so many buffers?
#[inline]
pub(super) fn room(buffers: usize, need: usize, (free, table): (u16, u16)) -> Result<(), Full> {
    assert!(buffers > 0, "a chain has buffers");
    let fits = need <= usize::from(free) && (need == buffers || buffers <= usize::from(table));
    fits.then_some(()).ok_or(Full { buffers, free, table })
}
