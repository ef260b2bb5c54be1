//! The XDP program's instructions (kernel: Documentation/bpf/standardization/instruction-set.rst).
//!
//! r0 is what a call returns, r1 to r5 are its arguments, r6 to r9 survive it, r10 is the end of the stack.

use std::os::fd::{AsRawFd, OwnedFd};

use libbpf_sys as bpf;
use libbpf_sys::bpf_insn;

/// `offsetof` in `struct xdp_md`.
const DATA: i16 = 0;
const DATA_END: i16 = 4;
const RX_QUEUE_INDEX: i16 = 16;
/// Where on the stack the tag is put: TPID as on the wire, TCI as a number.
const TPID: i16 = -2;
const TCI: i16 = -4;

/// An instruction between two registers, or a register and a number.
fn insn(code: u32, registers: (u8, u8), off: i16, imm: i32) -> bpf_insn {
    let (to, from) = registers;
    let registers = bpf_insn::new_bitfield_1(to, from);
    bpf_insn { code: code as u8, _bitfield_1: registers, off, imm, ..Default::default() }
}

fn mov(to: u8, from: u8) -> bpf_insn {
    insn(bpf::BPF_ALU64 | bpf::BPF_MOV | bpf::BPF_X, (to, from), 0, 0)
}

fn set(to: u8, value: i32) -> bpf_insn {
    insn(bpf::BPF_ALU64 | bpf::BPF_MOV | bpf::BPF_K, (to, 0), 0, value)
}

fn add(to: u8, value: i32) -> bpf_insn {
    insn(bpf::BPF_ALU64 | bpf::BPF_ADD | bpf::BPF_K, (to, 0), 0, value)
}

/// `size` is `BPF_DW`, `BPF_W` or `BPF_H`.
fn load(size: u32, to: u8, (from, at): (u8, i16)) -> bpf_insn {
    insn(bpf::BPF_LDX | size | bpf::BPF_MEM, (to, from), at, 0)
}

fn store(size: u32, (to, at): (u8, i16), from: u8) -> bpf_insn {
    insn(bpf::BPF_STX | size | bpf::BPF_MEM, (to, from), at, 0)
}

fn call(helper: u32) -> bpf_insn {
    insn(bpf::BPF_JMP | bpf::BPF_CALL, (0, 0), 0, helper as i32)
}

fn exit() -> bpf_insn {
    insn(bpf::BPF_JMP | bpf::BPF_EXIT, (0, 0), 0, 0)
}

/// `return bpf_redirect_map(map, ctx->rx_queue_index, XDP_PASS)`, with the context in r1.
pub fn redirect(map: &OwnedFd) -> [bpf_insn; 6] {
    let map_fd = bpf::BPF_PSEUDO_MAP_FD as u8;
    [
        load(bpf::BPF_W, 2, (1, RX_QUEUE_INDEX)),
        insn(bpf::BPF_LD | bpf::BPF_DW | bpf::BPF_IMM, (1, map_fd), 0, map.as_raw_fd()),
        insn(0, (0, 0), 0, 0), // the upper half of the address
        set(3, bpf::XDP_PASS as i32),
        call(bpf::BPF_FUNC_redirect_map),
        exit(),
    ]
}

/// Makes a tag that the driver tells about part of the frame again: room of four bytes in front, the addresses
/// moved there, the tag behind them. `read_tag` is the number of the kernel's function. Context in and out: r1.
pub fn restore_tag(read_tag: i32) -> Vec<bpf_insn> {
    const CONTEXT: u8 = 6;
    const STACK: u8 = 10;
    let kernel_function = bpf::BPF_PSEUDO_KFUNC_CALL as u8;
    let restore = [
        mov(1, CONTEXT),
        set(2, -4),
        call(bpf::BPF_FUNC_xdp_adjust_head),
        load(bpf::BPF_W, 2, (CONTEXT, DATA)),
        load(bpf::BPF_W, 3, (CONTEXT, DATA_END)),
        mov(4, 2),
        add(4, 16),
        // if data + 16 <= data_end, or room was refused: the frame is too odd, drop it
        insn(bpf::BPF_JMP | bpf::BPF_JGT | bpf::BPF_X, (4, 3), 1, 0),
        insn(bpf::BPF_JMP | bpf::BPF_JEQ | bpf::BPF_K, (0, 0), 2, 0),
        set(0, bpf::XDP_DROP as i32),
        exit(),
        load(bpf::BPF_DW, 4, (2, 4)),
        store(bpf::BPF_DW, (2, 0), 4),
        load(bpf::BPF_W, 4, (2, 12)),
        store(bpf::BPF_W, (2, 8), 4),
        load(bpf::BPF_H, 4, (STACK, TPID)),
        store(bpf::BPF_H, (2, 12), 4),
        load(bpf::BPF_H, 4, (STACK, TCI)),
        insn(bpf::BPF_ALU | bpf::BPF_END | bpf::BPF_TO_BE, (4, 0), 0, 16),
        store(bpf::BPF_H, (2, 14), 4),
    ];
    let read = [
        mov(CONTEXT, 1),
        set(2, 0),
        store(bpf::BPF_W, (STACK, TCI), 2),
        mov(2, STACK),
        add(2, TPID.into()),
        mov(3, STACK),
        add(3, TCI.into()),
        insn(bpf::BPF_JMP | bpf::BPF_CALL, (0, kernel_function), 0, read_tag),
        // no tag, or the driver does not tell: go on
        insn(bpf::BPF_JMP | bpf::BPF_JNE | bpf::BPF_K, (0, 0), restore.len() as i16, 0),
    ];
    read.into_iter().chain(restore).chain([mov(1, CONTEXT)]).collect()
}
