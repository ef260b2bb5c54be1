//! Programs of others, for the tests.

use libbpf_sys as bpf;

use crate::port::netdev::Netdev;

fn insn(code: u32, to: u8, imm: i32) -> bpf::bpf_insn {
    let registers = bpf::bpf_insn::new_bitfield_1(to, 0);
    bpf::bpf_insn { code: code as u8, _bitfield_1: registers, imm, ..Default::default() }
}

/// Has the kernel put a VLAN tag beside every frame that leaves `interface`, as a VLAN device on it would.
pub fn tag_beside(interface: &str, tci: i32) {
    let set = |to, value| insn(bpf::BPF_ALU64 | bpf::BPF_MOV | bpf::BPF_K, to, value);
    let program = [
        set(2, 0x8100_u16.to_be().into()),
        set(3, tci),
        insn(bpf::BPF_JMP | bpf::BPF_CALL, 0, bpf::BPF_FUNC_skb_vlan_push as i32),
        set(0, 0),
        insn(bpf::BPF_JMP | bpf::BPF_EXIT, 0, 0),
    ];
    let index = Netdev::open(interface).unwrap().index().unwrap() as i32;
    // SAFETY: C strings and an array with its length; no options.
    let link = unsafe {
        let (kind, count, null) = (bpf::BPF_PROG_TYPE_SCHED_CLS, program.len() as _, std::ptr::null_mut());
        let fd = bpf::bpf_prog_load(kind, c"tag".as_ptr(), c"GPL".as_ptr(), program.as_ptr(), count, null);
        bpf::bpf_link_create(fd, index, bpf::BPF_TCX_EGRESS, std::ptr::null())
    };
    assert!(link > 0, "{}", std::io::Error::last_os_error()); // open until the process ends
}

/// Attaches a program that passes all frames, without a link: it stays until somebody takes it off.
pub fn leave_program(name: &std::ffi::CStr, interface: &str, flags: u32) {
    let index = Netdev::open(interface).unwrap().index().unwrap();
    let pass = insn(bpf::BPF_ALU64 | bpf::BPF_MOV | bpf::BPF_K, 0, bpf::XDP_PASS as i32);
    let program = [pass, insn(bpf::BPF_JMP | bpf::BPF_EXIT, 0, 0)];
    // SAFETY: C strings and an array with its length; no options.
    let done = unsafe {
        let (kind, null) = (bpf::BPF_PROG_TYPE_XDP, std::ptr::null_mut());
        let fd = bpf::bpf_prog_load(kind, name.as_ptr(), c"GPL".as_ptr(), program.as_ptr(), 2, null);
        let done = bpf::bpf_xdp_attach(index as i32, fd, flags, std::ptr::null());
        libc::close(fd);
        done
    };
    assert_eq!(done, 0);
}
