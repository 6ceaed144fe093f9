"""nftables rules that allow connections inwards only. Pure."""


def rules(front: str) -> str:
    """Return the rules for a container whose interface `front` receives the host's published ports.

    Only packets of established connections leave. Containers on the inner networks cannot connect to this one:
    to the service behind, such a connection would look as if it came from the host.
    See https://wiki.nftables.org/wiki-nftables/index.php/Matching_connection_tracking_stateful_metainformation.
    """
    return f"""\
table inet edge
delete table inet edge
table inet edge {{
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname "{front}" ct state established,related accept
    oifname "{front}" drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname != {{ "lo", "{front}" }} ct state new drop
  }}
}}
"""
