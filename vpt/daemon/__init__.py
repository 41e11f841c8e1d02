# SPDX-License-Identifier: BSD-2-Clause
"""vptd: owner of the data plane, the control socket, the journal and the ports' sockets.

Import what you need from the modules; nothing is imported here, because the keeper (`vpt.daemon.keeper`) must
stay small: it lives for weeks beside the daemon and outlives it.

    daemon          Daemon, embeddable in any asyncio loop
    main            the `vptd` program
    client          Client, for those who talk to a running vptd
    keeper          the process that keeps guests' memory and doorbells while vptd is away
    runtime         where sockets, counters and state live
"""
