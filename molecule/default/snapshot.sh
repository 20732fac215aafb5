find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /var/tmp -o -path /var/log \
  -o -path /var/cache -o -path /root -o -path '/opt/artifacts' -o -path '/var/lib/rpm/*-shm' -o -path '/var/lib/dnf' \
  -o -path /var/lib/systemd -o -name __pycache__ \) -prune -o -not -type d -printf '%p %s %m %T@\n' | sort
