//! The messages of a frontend, as rust-vmm's `vhost` reads them, and what the device does about each.
//!
//! An error refuses: the frontend is told if it asked to be (REPLY_ACK), else the session ends.

use std::fs::File;
use std::io;
use std::sync::Arc;

use nix::sys::eventfd::EventFd;
use vhost::vhost_user::message::*;
use vhost::vhost_user::{Backend, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::device::{Device, DeviceError};
use super::inflight;
use super::log::DirtyLog;
use super::memory::{Region, RegionSpec, SLOTS_MAX};
use super::offer;
use super::ring::{Parts, Witness};
use super::signal::eventfd_of;
use super::vring::Kick;
use crate::virtio::RING_MAX;
use crate::virtio::features::Features;

impl From<DeviceError> for Error {
    fn from(error: DeviceError) -> Error {
        Error::ReqHandlerError(io::Error::other(error))
    }
}

fn spec(region: &VhostUserMemoryRegion) -> RegionSpec {
    RegionSpec {
        guest: region.guest_phys_addr,
        len: region.memory_size,
        user: region.user_addr,
        offset: region.mmap_offset,
    }
}

fn map(region: &VhostUserMemoryRegion, file: File) -> std::result::Result<Arc<Region>, DeviceError> {
    Ok(Region::map(file, spec(region))?)
}

fn event(file: Option<File>) -> std::result::Result<Option<Arc<EventFd>>, DeviceError> {
    file.map(|file| eventfd_of(file).ok_or(DeviceError::NotEventFd)).transpose()
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        Ok(self.stop()?)
    }

    fn reset_device(&mut self) -> Result<()> {
        Ok(self.reset()?)
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(offer::FEATURES.0)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        Ok(self.acknowledge(Features(features))?)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(offer::PROTOCOL)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let foreign = features & !offer::PROTOCOL.bits();
        if foreign != 0 {
            return Err(DeviceError::Protocol(foreign).into());
        }
        self.state.protocol = features;
        Ok(())
    }

    /// Of pairs, for a network device.
    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.pairs.into())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let regions = regions.iter().zip(files).map(|(region, file)| map(region, file));
        self.set_memory(regions.collect::<std::result::Result<_, _>>()?)?;
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(SLOTS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _: Option<bool>,
    ) -> Result<Option<u64>> {
        self.add_region(map(region, file)?)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        Ok(self.remove_region(spec(region))?)
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let log = DirtyLog::map(file, log.mmap_offset, log.mmap_size).map_err(DeviceError::Memory)?;
        Ok(self.set_log(log)?)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).ok().filter(|size| (1..=RING_MAX).contains(size));
        let size = size.ok_or(DeviceError::Size(num))?;
        Ok(self.change_ring(index, |vring| vring.size = size)?)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let log = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        let parts = Parts { descriptors, available, used, log };
        Ok(self.change_ring(index, |vring| vring.parts = Some(parts))?)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        Ok(self.change_ring(index, |vring| vring.begin_at(base, Witness::Frontend))?)
    }

    /// Stops the ring, and says where.
    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let features = self.state.acked;
        let base = self.change_ring(index, |vring| {
            vring.stop();
            vring.base(features)
        })?;
        self.forget(index as usize);
        Ok(VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let kick = event(file)?.map_or(Kick::Polled, Kick::By);
        Ok(self.change_ring(index.into(), |vring| vring.kick = kick)?)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let call = event(file)?;
        Ok(self.change_ring(index.into(), |vring| vring.call = call)?)
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let error = event(file)?;
        Ok(self.change_ring(index.into(), |vring| vring.error = error)?)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        Ok(self.change_ring(index, |vring| vring.enabled = enable)?)
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Ok(offer::config(offset, size, self.pairs, self.mtu))
    }

    /// Nothing of it is the driver's to write (virtio 1.2 section 5.1.4).
    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(DeviceError::Foreign.into())
    }

    /// See [`offer::PROTOCOL`]: there is nothing to say there, but a frontend complains if nobody holds the other end.
    fn set_backend_req_fd(&mut self, backend: Backend) {
        self.channel = Some(backend);
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(DeviceError::Foreign.into())
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(DeviceError::Foreign.into())
    }

    /// A new one, which the frontend keeps and gives back by the next message.
    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let VhostUserInflight { num_queues, queue_size, .. } = *asked;
        let layout = self.inflight_layout(num_queues, queue_size);
        let (file, len) = layout.create().map_err(DeviceError::Inflight)?;
        Ok((VhostUserInflight::new(len, 0, num_queues, queue_size), file))
    }

    fn set_inflight_fd(&mut self, given: &VhostUserInflight, file: File) -> Result<()> {
        let VhostUserInflight { mmap_size, mmap_offset, num_queues, queue_size } = *given;
        let layout = self.inflight_layout(num_queues, queue_size);
        let region =
            inflight::Region::map(file, mmap_offset, mmap_size, layout).map_err(DeviceError::Inflight)?;
        Ok(self.set_inflight(region)?)
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(DeviceError::Foreign.into())
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(DeviceError::Foreign.into())
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(DeviceError::Foreign.into())
    }
}
