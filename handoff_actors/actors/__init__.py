"""OTP on Pykka: actors, supervisors and tables. Knows nothing of DAGs or sockets.

carriers → mailbox → calls (Ref), links (Down), names, timers, table
→ server (Actor) → pykka_runtime (Incarnation) → system
specs, restart_policy (pure) → children → supervision → supervisor, dynamic_supervisor
"""
