"""An agent's sandbox: each job gets a directory in the running VM, for as long as it runs.

    python agent_sandbox.py firecracker:/run/fc/v.sock /srv/project COMMAND...

Two jobs run beside each other. Both get the project, read-only; each gets a workspace of its own. The command is the
host's side of a job, which tells the guest what to mount: it finds the address and the names of the shares in the
variables ADDRESS, PROJECT and WORKSPACE. When it ends, the guest reaches the workspace no more; the project goes when
both have ended.
"""

import asyncio
import os
import sys
import tempfile

from uvmshare import FileServer, Manager


async def run_job(job: str, manager: Manager, address: str, project: str, command: list[str]) -> int:
    """Run one job's command while the VM has its shares. Return its exit status."""
    with tempfile.TemporaryDirectory(prefix=f"{job}-") as workspace:
        shared = await manager.add(project, read_only=True, owner=job)
        own = await manager.add(workspace, owner=job)
        try:
            variables = {**os.environ, "JOB": job, "ADDRESS": address, "PROJECT": shared, "WORKSPACE": own}
            process = await asyncio.create_subprocess_exec(*command, env=variables)
            status = await process.wait()
            print(f"{job} ended with status {status} and left {sorted(os.listdir(workspace))}")
            return status
        finally:
            # Both are the job's, and it holds nothing else. The project stays for the other job.
            await manager.release_owner(job)


async def main(address: str, project: str, command: list[str]) -> int:
    """Serve the VM while two jobs run in it."""
    async with FileServer(listen=[address]) as server, Manager(server) as manager:
        jobs = [run_job(job, manager, address, project, command) for job in ("job-1", "job-2")]
        statuses = await asyncio.gather(*jobs)
        print(f"shares that are left: {len(manager.shares())}")
        return max(statuses)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: python agent_sandbox.py ADDRESS PROJECT COMMAND...")
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:])))
